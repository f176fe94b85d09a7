/* The kernels of fused.py over layers of sizes n[0], n[1], ...; each reads its tensors once.

   Every operation rounds separately (-ffp-contract=off), so the results equal those of PyTorch's
   separate operations bit for bit, for any number of threads. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Number of elements that are processed together. */
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

/* The inverse: element i of a mask is bit i % 8 of byte i / 8. */
static void gather(const uint8_t *mask, uint8_t *bits, int64_t length)
{
    const int64_t whole = length / 8;
    for (int64_t i = 0; i < whole; i++) {
        uint64_t eight;
        memcpy(&eight, mask + 8 * i, 8);
        /* Byte i moves to bit i of the topmost byte. */
        bits[i] = eight * 0x0102040810204080 >> 56;
    }
    if (length % 8)
        bits[whole] = 0;
    for (int64_t i = 8 * whole; i < length; i++)
        bits[whole] |= mask[i] << i % 8;
}

/* Gather the values at marked positions, and the positions, counted from `first`, unless places is
   NULL. The mask has eight more bytes. */
static void note(uint8_t *marked, int64_t length, const float *from, int64_t first, float *values,
                 int64_t *places)
{
    memset(marked + length, 0, 8);
    for (int64_t i = 0; i < length; i += 8) {
        uint64_t marks;
        memcpy(&marks, marked + i, 8);
        for (; marks; marks &= marks - 1) {
            const int64_t j = i + __builtin_ctzll(marks) / 8;
            *values++ = from[j];
            if (places)
                *places++ = first + j;
        }
    }
}

/* 1 / unit, alpha_1, 1 - alpha_1, alpha_2, 1 - alpha_2, and the bias corrections of sqrt(v), m. */
struct factors {
    float per_unit, alpha_1, beta_1, alpha_2, beta_2, unbias_root, unbias;
};

/* The means m and v have the type `moment`.

   seven_*: SEVEN's step.

   sampled_*: the scores after that step at every stride-th element that is kept; their number.

   seven_and_best_*: the step; sets pruned weights (0 in old) to zero, and keeps those of the others
   that score low or more (1 in new). counts: those above high, and those from low to high,
   whose scores and positions go to values and places while there is room, in any order. A position
   is its layer in the upper 24 bits and its index in the lower 40.

   The factors are copied inside the parallel region: otherwise the compiler assumes that a step may
   change them, and vectorizes no loop over elements. */
#define SEVEN(type, moment, load, store)                                                           \
    static inline float scored_##type(float weight, float grad, moment *m, moment *v, float score, \
                                      const struct factors *by)                                    \
    {                                                                                              \
        float size = fabsf(grad);                                                                  \
        float a = (size <= 3.402823466e38f ? size : 0.0f) * by->per_unit;                          \
        float mean = load(*m) * by->alpha_1 + a * by->beta_1;                                      \
        float square = load(*v) * by->alpha_2 + a * a * by->beta_2;                                \
        *m = store(mean);                                                                          \
        *v = store(square);                                                                        \
        float noise = sqrtf(square) * by->unbias_root + 1e-9f;                                     \
        return score + fabsf(a * weight * mean / noise) * by->unbias;                              \
    }                                                                                              \
                                                                                                   \
    void seven_##type(int layers, const int64_t *n, float **weights, float **grads,                \
                      moment **means, moment **squares, float **scores,                            \
                      const struct factors *factors, int threads)                                  \
    {                                                                                              \
        _Pragma("omp parallel num_threads(threads)") for (int l = 0; l < layers; l++)              \
        {                                                                                          \
            const struct factors by = *factors;                                                    \
            const float *w = weights[l], *g = grads[l];                                            \
            moment *m = means[l], *v = squares[l];                                                 \
            float *s = scores[l];                                                                  \
            _Pragma("omp for simd schedule(static) nowait") for (int64_t i = 0; i < n[l]; i++)     \
                s[i] = scored_##type(w[i], g[i], m + i, v + i, s[i], &by);                         \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    void sampled_##type(int layers, const int64_t *n, float **weights, float **grads,              \
                        moment **means, moment **squares, float **scores, uint8_t **bits,          \
                        const struct factors *factors, int64_t stride, float *sample,              \
                        int64_t *number, int threads)                                              \
    {                                                                                              \
        int64_t taken = 0;                                                                         \
        _Pragma("omp parallel num_threads(threads)")                                               \
        {                                                                                          \
            const struct factors by = *factors;                                                    \
            int64_t first = 0;                                                                     \
            for (int l = 0; l < layers; l++) {                                                     \
                _Pragma("omp for schedule(static) nowait") for (int64_t i = first; i < n[l];       \
                                                                i += stride)                       \
                {                                                                                  \
                    if (!(bits[l][i / 8] >> i % 8 & 1))                                            \
                        continue;                                                                  \
                    moment m = means[l][i], v = squares[l][i];                                     \
                    int64_t place;                                                                 \
                    _Pragma("omp atomic capture") place = taken++;                                 \
                    sample[place] =                                                                \
                        scored_##type(weights[l][i], grads[l][i], &m, &v, scores[l][i], &by);      \
                }                                                                                  \
                first = ((first - n[l]) % stride + stride) % stride;                               \
            }                                                                                      \
        }                                                                                          \
        *number = taken;                                                                           \
    }                                                                                              \
                                                                                                   \
    void seven_and_best_##type(                                                                    \
        int layers, const int64_t *n, float **weights, float **grads, moment **means,              \
        moment **squares, float **scores, uint8_t **old, uint8_t **new,                            \
        const struct factors *factors, float low, float high, float *values, int64_t *places,      \
        int64_t room, int64_t *counts, int threads)                                                \
    {                                                                                              \
        int64_t above = 0, taken = 0;                                                              \
        _Pragma("omp parallel num_threads(threads) reduction(+ : above)") for (int l = 0;          \
                                                                               l < layers; l++)    \
        {                                                                                          \
            _Pragma("omp for schedule(static) nowait") for (int64_t start = 0; start < n[l];       \
                                                            start += RUN)                          \
            {                                                                                      \
                const struct factors by = *factors;                                                \
                const int64_t length = run_length(start, n[l]);                                    \
                float *restrict w = weights[l] + start, *restrict s = scores[l] + start;           \
                const float *restrict g = grads[l] + start;                                        \
                moment *restrict m = means[l] + start, *restrict v = squares[l] + start;           \
                uint8_t open[RUN], keep[RUN], inside[RUN + 8];                                     \
                spread(old[l] + start / 8, open, length);                                          \
                for (int64_t i = 0; i < length; i++) {                                             \
                    uint32_t word;                                                                 \
                    s[i] = scored_##type(w[i], g[i], m + i, v + i, s[i], &by);                     \
                    memcpy(&word, w + i, 4);                                                       \
                    word &= -(uint32_t)open[i];                                                    \
                    memcpy(w + i, &word, 4);                                                       \
                }                                                                                  \
                int32_t over = 0, within = 0;                                                      \
                for (int64_t i = 0; i < length; i++) {                                             \
                    int32_t is_over = open[i] & (s[i] > high);                                     \
                    keep[i] = open[i] & (s[i] >= low);                                             \
                    inside[i] = keep[i] ^ is_over;                                                 \
                    over += is_over;                                                               \
                    within += inside[i];                                                           \
                }                                                                                  \
                gather(keep, new[l] + start / 8, length);                                          \
                above += over;                                                                     \
                int64_t place;                                                                     \
                _Pragma("omp atomic capture") { place = taken; taken += within; }                  \
                if (place + within <= room)                                                        \
                    note(inside, length, s, (int64_t)l << 40 | start, values + place,              \
                         places + place);                                                          \
            }                                                                                      \
        }                                                                                          \
        counts[0] = above, counts[1] = taken;                                                      \
    }

SEVEN(float32, float, , )
SEVEN(bfloat16, uint16_t, widened, narrowed)

static uint64_t up_to_64(const uint8_t *bits, int64_t number)
{
    uint64_t word = 0;
    if (number >= 64)
        memcpy(&word, bits, 8);
    else
        memcpy(&word, bits, (number + 7) / 8);
    return word;
}

/* new: also 0 where the recorded values are below the threshold. Weights only in old are set to
   zero. totals: number of ones in each mask. */
void drop(int layers, const int64_t *n, float **weights, uint8_t **old, uint8_t **new,
          const float *values, const int64_t *places, int64_t number, float threshold,
          int64_t *totals, int threads)
{
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < number; i++) {
            if (values[i] >= threshold)
                continue;
            const int64_t index = places[i] & 0xffffffffff;
#pragma omp atomic
            new[places[i] >> 40][index / 8] &= ~(1 << index % 8);
        }
        for (int l = 0; l < layers; l++) {
#pragma omp for schedule(static) nowait
            for (int64_t start = 0; start < n[l]; start += RUN) {
                const int64_t end = start + run_length(start, n[l]);
                int32_t here = 0;
                for (int64_t i = start; i < end; i += 64) {
                    const uint64_t stay = up_to_64(new[l] + i / 8, end - i);
                    uint64_t gone = up_to_64(old[l] + i / 8, end - i) & ~stay;
                    here += __builtin_popcountll(stay);
                    for (; gone; gone &= gone - 1)
                        weights[l][i + __builtin_ctzll(gone)] = 0.0f;
                }
#pragma omp atomic
                totals[l] += here;
            }
        }
    }
}

/* counts: candidates, those above high, at high, at low, and strictly between. The last are written
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
            note(inside, length, x, 0, between + place, NULL);
        }
    }
    counts[0] = taking, counts[1] = above, counts[2] = at_high, counts[3] = at_low;
    counts[4] = taken;
}

/* masks: candidates above the threshold. found: for each layer how many equal it; their positions
   go to the layer's part of `ties` while there is room, in any order. */
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

/* totals: number of ones in each mask. */
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

/* totals: as above. */
void pack(int layers, const int64_t *n, uint8_t **masks, uint8_t **bits, int64_t *totals,
          int threads)
{
#pragma omp parallel num_threads(threads)
    for (int l = 0; l < layers; l++) {
#pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < n[l]; start += RUN) {
            const int64_t length = run_length(start, n[l]);
            gather(masks[l] + start, bits[l] + start / 8, length);
            const int32_t here = count_of(masks[l] + start, length);
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
