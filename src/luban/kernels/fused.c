/* Steps of a Transformer between its matrix products, each in one pass over memory.
 *
 * Plain C with GCC's vector extensions: the compiler turns a vector of 16 numbers into what the processor has. Sums go
 * by these 16 lanes, so they come out the same whatever the processor's own width is, and work is cut into pieces that
 * do not depend on the number of threads.
 *
 * The functions of body.h are compiled twice: for T = float, and for T = uint16_t that holds a bfloat16 number. Residual
 * stream, norms' weights and statistics are float in both.
 */
#include "vectors.h"

#define EACH _Pragma("omp parallel for num_threads(threads) schedule(static)")

#define T uint16_t
#define NAME(name) name##_bfloat16
#define LOAD load_bfloat16
#define STORE store_bfloat16
#include "body.h"
#undef T
#undef NAME
#undef LOAD
#undef STORE

#define T float
#define NAME(name) name##_float32
#define LOAD load_float
#define STORE store_float
#include "body.h"

#define PIECE 32768 /* numbers whose squares are one sum, whatever the threads are */

/* Sums of squares of pieces of several tensors: of tensor i, which has sizes[i] numbers, those from firsts[i] to
 * firsts[i + 1]. */
void squares(long pieces, const float *const *tensors, const int64_t *sizes, const int64_t *firsts, double *sums,
             int threads) {
#pragma omp parallel num_threads(threads)
    {
        long tensor = 0;
#pragma omp for schedule(static)
        for (long piece = 0; piece < pieces; piece++) {
            while (firsts[tensor + 1] <= piece) tensor++;
            long start = (piece - firsts[tensor]) * PIECE, end = start + PIECE;
            const float *x = tensors[tensor];
            if (end > sizes[tensor]) end = sizes[tensor];
            double sum = 0.0;
            for (; start + 64 * LANES <= end; start += 64 * LANES) { /* float adds up no more than that */
                Vector some[4] = {{0}};
                for (long i = 0; i < 64; i++) {
                    Vector own = load_float(x + start + i * LANES);
                    some[i % 4] += own * own;
                }
                sum += sum_of((some[0] + some[1]) + (some[2] + some[3]));
            }
            for (; start < end; start++) sum += (double)x[start] * x[start];
            sums[piece] = sum;
        }
    }
}

#ifdef __AVX512BF16__
#include <omp.h>

#include "tiles.h"
#include "products.h"
#include "muon.h"
#endif
