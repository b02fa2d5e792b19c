/* Vectors of 16 numbers, as GCC's extensions have them: the compiler turns one into what the processor has. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__ /* where GCC's own code for a vector is longer than what the processor has */
#include <immintrin.h>
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));

INLINE Vector all(float x) { return x - (Vector){0}; }

INLINE Vector either(Integers first, Vector a, Vector b) {
    return (Vector)((first & (Integers)a) | (~first & (Integers)b));
}

INLINE Vector load_float(const float *from) {
    Vector x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store_float(float *to, Vector x) { memcpy(to, &x, sizeof x); }

INLINE Vector load_bfloat16(const uint16_t *from) {
    Halves x;
    memcpy(&x, from, sizeof x);
#ifdef __AVX512F__
    return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#else
    return (Vector)(__builtin_convertvector(x, Bits) << 16);
#endif
}

/* Rounds to the nearest, to even where two are as near; what is no number stays none. */
INLINE void store_bfloat16(uint16_t *to, Vector x) {
#ifdef __AVX512BF16__
    __m256bh out = _mm512_cvtneps_pbh((__m512)x);
#else
    Bits bits = (Bits)x;
    Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Bits number = (Bits)(x == x);
    Halves out = __builtin_convertvector((rounded & number) | (0x7fc0 & ~number), Halves);
#endif
    memcpy(to, &out, sizeof out);
}

/* The halves of a vector one upon the other, down to four numbers. */
#define FOLDED(x, COMBINE)                                                                                             \
    Eight low, high;                                                                                                   \
    memcpy(&low, &x, sizeof low);                                                                                      \
    memcpy(&high, (const char *)&x + sizeof low, sizeof high);                                                         \
    Eight eight = COMBINE(low, high);                                                                                  \
    Four first, second;                                                                                                \
    memcpy(&first, &eight, sizeof first);                                                                              \
    memcpy(&second, (const char *)&eight + sizeof first, sizeof second);                                               \
    Four four = COMBINE(first, second)

#define SUM(a, b) ((a) + (b))
#define LARGER(a, b) ((typeof(a))((((a) > (b)) & (typeof((a) > (b)))(a)) | (~((a) > (b)) & (typeof((a) > (b)))(b))))

INLINE float sum_of(Vector x) {
    FOLDED(x, SUM);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

INLINE float largest_of(Vector x) {
    FOLDED(x, LARGER);
    float one = four[0] > four[2] ? four[0] : four[2], other = four[1] > four[3] ? four[1] : four[3];
    return one > other ? one : other;
}

/* x, no less than `least` and no more than `most`; what is no number stays none. */
INLINE Vector within(float least, Vector x, float most) {
#ifdef __AVX512F__ /* of two of which one is no number these return the second */
    return (Vector)_mm512_min_ps((__m512)all(most), _mm512_max_ps((__m512)all(least), (__m512)x));
#else
    x = either(x < least, all(least), x);
    return either(x > most, all(most), x);
#endif
}

/* e to the x, to about 1 unit in the last place, after Cephes' expf (S. Moshier): x = n ln 2 + r, a polynomial in r,
 * times 2 to the n. Below -87 and above 88, where a float ends, it gives what it gives there. */
INLINE Vector exponential(Vector x) {
    x = within(-87.0f, x, 88.0f);
    Vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: what is added rounds to whole numbers */
    Vector r = x - n * 0.693145752f - n * 1.42860677e-6f;
    Vector p = r * 1.98756915e-4f + 1.39819995e-3f;
    p = p * r + 8.33345191e-3f;
    p = p * r + 4.16657959e-2f;
    p = p * r + 1.66666655e-1f;
    p = p * r + 5.00000012e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Vector)((__builtin_convertvector(n, Integers) + 127) << 23);
}

INLINE Integers lanes_below(long count) {
    Integers lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane < (int)count;
}
