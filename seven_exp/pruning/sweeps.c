/* The passes of sweeps.py over layers of sizes n[0], n[1], ..., each reading its tensors once.

   Every operation rounds by itself (-ffp-contract=off), so that results are those of PyTorch's
   separate operations to the last bit, whatever the number of threads. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Elements that are looked at together. */
#define RUN 1024

static int64_t run_length(int64_t start, int64_t n)
{
    return n - start < RUN ? n - start : RUN;
}

/* bfloat16 is the upper half of a float; rounding is to nearest, ties to even. */
static float widened(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static uint16_t narrowed(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* factors: 1 / unit, alpha_1, 1 - alpha_1, alpha_2, 1 - alpha_2, and those that remove the bias of
   sqrt(v) and of m. The means m and v are kept as `moment`s. */
#define SEVEN(name, moment, load, store)                                                           \
    void name(int layers, const int64_t *n, float **weights, float **grads, moment **means,        \
              moment **squares, float **scores, const float *factors, int threads)                 \
    {                                                                                              \
        const float per_unit = factors[0], alpha_1 = factors[1], beta_1 = factors[2],              \
                    alpha_2 = factors[3], beta_2 = factors[4], unbias_root = factors[5],           \
                    unbias = factors[6];                                                           \
        _Pragma("omp parallel num_threads(threads)") for (int l = 0; l < layers; l++)              \
        {                                                                                          \
            const float *w = weights[l], *g = grads[l];                                            \
            moment *m = means[l], *v = squares[l];                                                 \
            float *s = scores[l];                                                                  \
            _Pragma("omp for simd schedule(static) nowait") for (int64_t i = 0; i < n[l]; i++)     \
            {                                                                                      \
                float size = fabsf(g[i]);                                                          \
                float a = (size <= 3.402823466e38f ? size : 0.0f) * per_unit;                      \
                float mean = load(m[i]) * alpha_1 + a * beta_1;                                    \
                float square = load(v[i]) * alpha_2 + a * a * beta_2;                              \
                m[i] = store(mean);                                                                \
                v[i] = store(square);                                                              \
                float noise = sqrtf(square) * unbias_root + 1e-9f;                                 \
                s[i] += fabsf(a * w[i] * mean / noise) * unbias;                                   \
            }                                                                                      \
        }                                                                                          \
    }

SEVEN(seven_float32, float, , )
SEVEN(seven_bfloat16, uint16_t, widened, narrowed)

/* counts: candidates, those above high, at high, at low, strictly between. The last are written
   to `between` while there is room, in any order. */
void partition(int layers, const int64_t *n, float **scores, uint8_t **candidates, float low,
               float high, float *between, int64_t room, int64_t *counts, int threads)
{
    int64_t taking = 0, above = 0, at_high = 0, at_low = 0, taken = 0;
    uint8_t all[RUN];
    memset(all, 1, RUN);
#pragma omp parallel num_threads(threads) reduction(+ : taking, above, at_high, at_low)
    for (int l = 0; l < layers; l++) {
#pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < n[l]; start += RUN) {
            const int64_t length = run_length(start, n[l]);
            const float *x = scores[l] + start;
            const uint8_t *open = candidates ? candidates[l] + start : all;
            uint8_t inside[RUN + 8];
            memset(inside + length, 0, 8);
            int32_t takes = 0, over = 0, top = 0, bottom = 0, within = 0;
            for (int64_t i = 0; i < length; i++) {
                int32_t is = open[i], is_inside = is & (x[i] > low) & (x[i] < high);
                takes += is;
                over += is & (x[i] > high);
                top += is & (x[i] == high);
                bottom += is & (x[i] == low);
                within += is_inside;
                inside[i] = is_inside;
            }
            taking += takes, above += over, at_high += top, at_low += bottom;
            if (!within)
                continue;
            int64_t place;
#pragma omp atomic capture
            { place = taken; taken += within; }
            if (place + within > room)
                continue;
            for (int64_t i = 0; i < length; i += 8) {
                uint64_t marks;
                memcpy(&marks, inside + i, 8);
                for (; marks; marks &= marks - 1)
                    between[place++] = x[i + __builtin_ctzll(marks) / 8];
            }
        }
    }
    counts[0] = taking, counts[1] = above, counts[2] = at_high, counts[3] = at_low;
    counts[4] = taken;
}

/* masks: candidates above the threshold. found: for each layer how many equal it; where these lie
   goes to the layer's part of `ties` while there is room, in any order. */
void best(int layers, const int64_t *n, float **scores, uint8_t **candidates, float threshold,
          uint8_t **masks, int64_t *ties, int64_t room, int64_t *found, int threads)
{
    uint8_t all[RUN];
    memset(all, 1, RUN);
#pragma omp parallel num_threads(threads)
    for (int l = 0; l < layers; l++) {
#pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < n[l]; start += RUN) {
            const int64_t length = run_length(start, n[l]);
            const float *x = scores[l] + start;
            const uint8_t *open = candidates ? candidates[l] + start : all;
            uint8_t *restrict out = masks[l] + start;
            int32_t equal = 0;
            for (int64_t i = 0; i < length; i++) {
                out[i] = open[i] & (x[i] > threshold);
                equal += open[i] & (x[i] == threshold);
            }
            if (!equal)
                continue;
            int64_t place;
#pragma omp atomic capture
            { place = found[l]; found[l] += equal; }
            for (int64_t i = 0; i < length && place < room; i++)
                if (open[i] && x[i] == threshold)
                    ties[l * room + place++] = start + i;
        }
    }
}

static int32_t count_of(const uint8_t *mask, int64_t length)
{
    int32_t here = 0;
    for (int64_t i = 0; i < length; i++)
        here += mask[i];
    return here;
}

/* totals: how many places of each mask are 1. */
void count(int layers, const int64_t *n, uint8_t **masks, int64_t *totals, int threads)
{
#pragma omp parallel num_threads(threads)
    for (int l = 0; l < layers; l++) {
#pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < n[l]; start += RUN) {
            const int32_t here = count_of(masks[l] + start, run_length(start, n[l]));
#pragma omp atomic
            totals[l] += here;
        }
    }
}

/* Bits to bytes of 0 or 1. */
static void spread(const uint8_t *bits, uint8_t *mask, int64_t length)
{
    const uint64_t ones = 0x0101010101010101;
    for (int64_t i = 0; i < length / 8; i++) {
        /* Of eight copies of the byte, copy j keeps bit j; adding 127 carries it to the top. */
        uint64_t eight = bits[i] * ones & 0x8040201008040201;
        eight = (eight + 0x7f * ones) >> 7 & ones;
        memcpy(mask + 8 * i, &eight, 8);
    }
    for (int64_t i = length / 8 * 8; i < length; i++)
        mask[i] = bits[i / 8] >> i % 8 & 1;
}

/* bits: place i of a mask is bit i % 8 of byte i / 8. totals: as above. */
void pack(int layers, const int64_t *n, uint8_t **masks, uint8_t **bits, int64_t *totals,
          int threads)
{
#pragma omp parallel num_threads(threads)
    for (int l = 0; l < layers; l++) {
#pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < n[l]; start += RUN) {
            const int64_t length = run_length(start, n[l]), whole = length / 8;
            const uint8_t *mask = masks[l] + start;
            uint8_t *out = bits[l] + start / 8;
            const int32_t here = count_of(mask, length);
            for (int64_t i = 0; i < whole; i++) {
                uint64_t eight;
                memcpy(&eight, mask + 8 * i, 8);
                /* Byte i moves to bit i of the topmost byte. */
                out[i] = eight * 0x0102040810204080 >> 56;
            }
            if (length % 8)
                out[whole] = 0;
            for (int64_t i = 8 * whole; i < length; i++)
                out[whole] |= mask[i] << i % 8;
#pragma omp atomic
            totals[l] += here;
        }
    }
}

void unpack(int layers, const int64_t *n, uint8_t **masks, uint8_t **bits, int threads)
{
#pragma omp parallel num_threads(threads)
    for (int l = 0; l < layers; l++) {
#pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < n[l]; start += RUN)
            spread(bits[l] + start / 8, masks[l] + start, run_length(start, n[l]));
    }
}

#define ZERO(name, word)                                                                           \
    void name(int layers, const int64_t *n, word **weights, uint8_t **bits, int threads)           \
    {                                                                                              \
        _Pragma("omp parallel num_threads(threads)") for (int l = 0; l < layers; l++)              \
        {                                                                                          \
            _Pragma("omp for schedule(static) nowait") for (int64_t start = 0; start < n[l];       \
                                                            start += RUN)                          \
            {                                                                                      \
                const int64_t length = run_length(start, n[l]);                                    \
                word *w = weights[l] + start;                                                      \
                uint8_t mask[RUN];                                                                 \
                spread(bits[l] + start / 8, mask, length);                                         \
                for (int64_t i = 0; i < length; i++)                                               \
                    w[i] &= -(word)mask[i];                                                        \
            }                                                                                      \
        }                                                                                          \
    }

ZERO(zero_4_bytes, uint32_t)
ZERO(zero_2_bytes, uint16_t)
