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

#ifdef __AVX512BF16__
#include <omp.h>

#include "tiles.h"
#include "products.h"
#include "muon.h"
#endif
