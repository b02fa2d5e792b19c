/* Products of bfloat16 numbers by blocks of 32 x 32, from operands laid out for them: by the matrix unit of a processor
 * that has one (AMX), else by its products of pairs (AVX-512 BF16). Sums are float.
 *
 * A step multiplies 32 x 32 numbers of the left by 32 x 32 of the right. On the left they lie row by row. On the right
 * they are two tiles of 16 columns each, in which two numbers that are below one another lie side by side.
 */
#define BLOCK 32
#define STEP (BLOCK * BLOCK)
#define TILE (STEP / 2)

typedef uint16_t Number; /* a bfloat16 */

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>

/* The system lends a process the matrix unit's registers only when asked; 0 where it does. */
long tiles_allowed(void) { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */); }

INLINE void tiles_begin(void) {
    struct {
        uint8_t palette, start, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } all_whole = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) all_whole.bytes[tile] = 64, all_whole.rows[tile] = 16;
    __asm__ volatile("ldtilecfg %0" ::"m"(all_whole));
}

INLINE void tiles_end(void) { __asm__ volatile("tilerelease"); }

/* c (32 x 32, rows `stride` apart) = left x right, of that many steps, or that much more. */
static void multiply(long steps, const Number *left, const Number *right, const Number *beside, float *c, long stride,
                     int more) {
    float *low = c + 16 * stride;
    __asm__ volatile("" ::: "memory"); /* what was written must be there: the lines below do not tell GCC they read */
    if (more) {
        _tile_loadd(0, c, stride * 4);
        _tile_loadd(1, c + 16, stride * 4);
        _tile_loadd(2, low, stride * 4);
        _tile_loadd(3, low + 16, stride * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (long step = 0; step < steps; step++, left += STEP, right += TILE, beside += TILE) {
        _tile_loadd(4, left, 64);
        _tile_loadd(6, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, beside, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, stride * 4);
    _tile_stored(1, c + 16, stride * 4);
    _tile_stored(2, low, stride * 4);
    _tile_stored(3, low + 16, stride * 4);
    __asm__ volatile("" ::: "memory");
}
#else
long tiles_allowed(void) { return 0; }
INLINE void tiles_begin(void) {}
INLINE void tiles_end(void) {}

static void multiply(long steps, const Number *left, const Number *right, const Number *beside, float *c, long stride,
                     int more) {
    for (long row = 0; row < BLOCK; row += 8) {
        __m512 sums[8][2];
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 2; j++)
                sums[i][j] = more ? _mm512_loadu_ps(c + (row + i) * stride + 16 * j) : _mm512_setzero_ps();
        for (long step = 0; step < steps; step++)
            for (long pair = 0; pair < BLOCK / 2; pair++) {
                __m512bh first = (__m512bh)_mm512_loadu_si512(right + step * TILE + pair * BLOCK);
                __m512bh second = (__m512bh)_mm512_loadu_si512(beside + step * TILE + pair * BLOCK);
                for (int i = 0; i < 8; i++) {
                    int32_t two;
                    memcpy(&two, left + step * STEP + (row + i) * BLOCK + 2 * pair, sizeof two);
                    __m512bh both = (__m512bh)_mm512_set1_epi32(two);
                    sums[i][0] = _mm512_dpbf16_ps(sums[i][0], both, first);
                    sums[i][1] = _mm512_dpbf16_ps(sums[i][1], both, second);
                }
            }
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 2; j++) _mm512_storeu_ps(c + (row + i) * stride + 16 * j, sums[i][j]);
    }
}
#endif

/* 16 x 16 pairs with their columns as rows. */
INLINE void transpose(__m512i x[16]) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
        }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 16; j += 8) {
            y[i + j] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0x88);
            y[i + j + 4] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
    }
}

/* 32 numbers of each of 32 rows as pairs with what is below them: 16 columns, and the 16 beside. Of both rows and
 * columns only those that are there are read; the others are zeros. */
INLINE void pairs(const Number *from, long stride, long rows, long columns, __m512i out[16], __m512i beside[16]) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                         37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const __mmask32 there = columns >= BLOCK ? 0xffffffff : (1u << columns) - 1;
    for (long i = 0; i < 16; i++) {
        __m512i upper = _mm512_setzero_si512(), lower = upper;
        if (2 * i < rows) upper = _mm512_maskz_loadu_epi16(there, from + 2 * i * stride);
        if (2 * i + 1 < rows) lower = _mm512_maskz_loadu_epi16(there, from + (2 * i + 1) * stride);
        out[i] = _mm512_permutex2var_epi16(upper, low, lower);
        beside[i] = _mm512_permutex2var_epi16(upper, high, lower);
    }
}

INLINE void put(const __m512i x[16], Number *to) {
    for (long i = 0; i < 16; i++) _mm512_store_si512(to + i * BLOCK, x[i]);
}

/* A step of the left from 32 x 32 numbers, rows `stride` apart, of which `count` are there. */
static void left_rows(const Number *from, long stride, long count, Number *to) {
    for (long i = 0; i < BLOCK; i++)
        _mm512_store_si512(to + i * BLOCK,
                           i < count ? _mm512_loadu_si512(from + i * stride) : _mm512_setzero_si512());
}

/* A step of the left from the columns of 32 rows. */
static void left_columns(const Number *from, long stride, long rows, long columns, Number *to) {
    __m512i x[16], y[16];
    pairs(from, stride, rows, columns, x, y);
    transpose(x);
    put(x, to);
    transpose(y);
    put(y, to + TILE);
}

/* Two tiles of the right from 32 rows. */
static void right_rows(const Number *from, long stride, long rows, long columns, Number *to, Number *beside) {
    __m512i x[16], y[16];
    pairs(from, stride, rows, columns, x, y);
    put(x, to);
    put(y, beside);
}

/* A tile of the right whose columns are 16 rows of 32 numbers. */
static void right_columns(const Number *from, long stride, long count, Number *to) {
    __m512i x[16];
    for (long i = 0; i < 16; i++) x[i] = i < count ? _mm512_loadu_si512(from + i * stride) : _mm512_setzero_si512();
    transpose(x);
    put(x, to);
}
