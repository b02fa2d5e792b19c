/* A step of Muon, one matrix at a time on one thread: what the iteration needs of it stays in that core's cache, and of
 * what is symmetric half is computed. The mathematics is that of luban/training/muon.py.
 *
 * A matrix is held in blocks of the left (tiles.h), row by row of blocks, the tall as wide ones. */
typedef struct {
    const float *slopes;
    float *momentum, *weights;
    int64_t rows, columns;
    double keep, move; /* weights = keep * weights - move * direction */
} Matrix;

typedef struct {
    double scale, mix; /* of gradients; of the mean that the momentum is */
    int64_t nesterov, iterations;
    double slack, least; /* room above the bound of the spectral norm; the least bound */
    double coefficients[8][3]; /* MOST_ITERATIONS of library.py */
} Method;

/* by * c, and also * gram where there is one, as bfloat16: in the place (row, column) and its mirror's. */
static void put_symmetric(const float *c, float by, float also, const Number *gram, long row, long column, long blocks,
                          Number *to) {
    Number *own = to + (row * blocks + column) * STEP;
    const Number *beside = gram + (row * blocks + column) * STEP;
    for (long i = 0; i < STEP; i += LANES) {
        Vector x = load_float(c + i) * by;
        if (gram) x += load_bfloat16(beside + i) * also;
        store_bfloat16(own + i, x);
    }
    if (row != column) left_columns(own, BLOCK, BLOCK, BLOCK, to + (column * blocks + row) * STEP);
}

/* Blocks (rows, columns) as the right operand whose sum is over their columns, or over their rows. */
static void turn_columns(const Number *x, long rows, long columns, Number *to) {
    for (long row = 0; row < rows; row++)
        for (long step = 0; step < columns; step++)
            for (long half = 0; half < 2; half++)
                right_columns(x + (row * columns + step) * STEP + half * TILE, BLOCK, BLOCK,
                              to + ((2 * row + half) * columns + step) * TILE);
}

static void turn_rows(const Number *x, long rows, long columns, Number *to) {
    for (long step = 0; step < rows; step++)
        for (long column = 0; column < columns; column++) {
            Number *tile = to + (2 * column * rows + step) * TILE;
            right_rows(x + (step * columns + column) * STEP, BLOCK, BLOCK, BLOCK, tile, tile + rows * TILE);
        }
}

/* As many of 16 numbers as there are; the others are zeros, and are not written. */
INLINE Vector load_part(const float *from, long count) {
    return count >= LANES ? load_float(from) : load_some_float32(from, count);
}

INLINE void store_part(float *to, Vector x, long count) {
    if (count >= LANES)
        store_float(to, x);
    else
        store_some_float32(to, x, count);
}

/* The two means of the gradient, of which the direction is made; returns the sum of its squares. */
static double begin(const Matrix *m, const Method *how, long rows, long columns, int tall, Number *x) {
    float kept = how->mix, new = 1.0 - how->mix, scale = how->scale;
    double squares = 0.0;
    memset(x, 0, rows * columns * STEP * sizeof *x);
    for (long row = 0; row < m->rows; row += 16)
        for (long column = 0; column < m->columns; column += 16) {
            Vector some[16], sum = {0};
            for (long i = 0; i < 16; i++) {
                long at = (row + i) * m->columns + column, count = m->columns - column;
                some[i] = all(0.0f);
                if (row + i >= m->rows) continue;
                Vector slope = load_part(m->slopes + at, count) * scale, mean = load_part(m->momentum + at, count);
                mean += (slope - mean) * new;
                store_part(m->momentum + at, mean, count);
                some[i] = how->nesterov ? slope + (mean - slope) * kept : mean;
                sum += some[i] * some[i];
            }
            squares += sum_of(sum);
            if (tall) transpose((__m512i *)some);
            long r = tall ? column : row, c = tall ? row : column;
            Number *to = x + (r / BLOCK * columns + c / BLOCK) * STEP + r % BLOCK * BLOCK + c % BLOCK;
            for (long i = 0; i < 16; i++) store_bfloat16(to + i * BLOCK, some[i]);
        }
    return squares;
}

/* weights = keep * weights - move * direction, for a block of it. */
static void move(const Matrix *m, const float *direction, long row, long column, int tall) {
    float keep = m->keep, by = m->move;
    for (long i = 0; i < BLOCK; i += 16)
        for (long j = 0; j < BLOCK; j += 16) {
            long r = tall ? column * BLOCK + j : row * BLOCK + i, c = tall ? row * BLOCK + i : column * BLOCK + j;
            Vector some[16];
            for (long k = 0; k < 16; k++) some[k] = load_float(direction + (i + k) * BLOCK + j);
            if (tall) transpose((__m512i *)some);
            for (long k = 0; k < 16 && r + k < m->rows && c < m->columns; k++) {
                float *own = m->weights + (r + k) * m->columns + c;
                store_part(own, load_part(own, m->columns - c) * keep - some[k] * by, m->columns - c);
            }
        }
}

long muon_scratch(long rows, long columns) {
    long short_side = blocks_of(smaller(rows, columns)), long_side = blocks_of(rows + columns - smaller(rows, columns));
    return (2 * short_side * long_side + 3 * short_side * short_side) * STEP * sizeof(Number) + STEP * sizeof(float);
}

static void step_of(const Matrix *m, const Method *how, char *scratch) {
    int tall = m->rows > m->columns;
    long rows = blocks_of(tall ? m->columns : m->rows), columns = blocks_of(tall ? m->rows : m->columns);
    Number *x = (Number *)scratch, *right = x + rows * columns * STEP, *gram = right + rows * columns * STEP;
    Number *gram_right = gram + rows * rows * STEP, *bent = gram_right + rows * rows * STEP;
    float *c = (float *)(bent + rows * rows * STEP);
    double squares = begin(m, how, rows, columns, tall, x);
    float by = 1.0 / (squares > 1e-30 ? squares : 1e-30), scale = 1.0f; /* of the Gram matrix, of x */
    for (long number = 0; number < how->iterations; number++) {
        float a = how->coefficients[number][0], b = how->coefficients[number][1], cc = how->coefficients[number][2];
        turn_columns(x, rows, columns, right);
        for (long row = 0; row < rows; row++)
            for (long column = row; column < rows; column++) {
                Number *tile = right + 2 * column * columns * TILE;
                multiply(columns, x + row * columns * STEP, tile, tile + columns * TILE, c, BLOCK, 0);
                put_symmetric(c, by, 0.0f, NULL, row, column, rows, gram);
            }
        turn_rows(gram, rows, rows, gram_right);
        double norm = 0.0;
        for (long row = 0; row < rows; row++)
            for (long column = row; column < rows; column++) {
                Number *tile = gram_right + 2 * column * rows * TILE;
                multiply(rows, gram + row * rows * STEP, tile, tile + rows * TILE, c, BLOCK, 0);
                if (number == 0) {
                    Vector sum = {0};
                    for (long i = 0; i < STEP; i += LANES) sum += load_float(c + i) * load_float(c + i);
                    norm += sum_of(sum) * (row == column ? 1.0 : 2.0);
                    put_symmetric(c, 1.0f, 0.0f, NULL, row, column, rows, bent);
                } else {
                    put_symmetric(c, cc, b, gram, row, column, rows, bent);
                }
            }
        if (number == 0) { /* bent is the square of gram yet: its norm bounds the largest singular value */
            double bound = sqrt(sqrt(norm));
            bound = (bound > how->least ? bound : how->least) * how->slack * how->slack;
            float of_gram = b / bound, of_square = cc / (bound * bound);
            for (long i = 0; i < rows * rows * STEP; i += LANES)
                store_bfloat16(bent + i, load_bfloat16(gram + i) * of_gram + load_bfloat16(bent + i) * of_square);
            scale = sqrt(by / bound);
            by = 1.0f;
        }
        int last = number == how->iterations - 1;
        turn_rows(x, rows, columns, right);
        for (long row = 0; row < rows; row++)
            for (long column = 0; column < columns; column++) {
                Number *tile = right + 2 * column * rows * TILE, *own = x + (row * columns + column) * STEP;
                multiply(rows, bent + row * rows * STEP, tile, tile + rows * TILE, c, BLOCK, 0);
                for (long i = 0; i < STEP; i += LANES) {
                    Vector sum = (load_float(c + i) + load_bfloat16(own + i) * a) * scale;
                    if (last)
                        store_float(c + i, sum);
                    else
                        store_bfloat16(own + i, sum);
                }
                if (last) move(m, c, row, column, tall);
            }
        scale = 1.0f;
    }
}

/* One step of several matrices; `scratch` holds `each` bytes for every thread, those of muon_scratch for the largest. */
void muon(long count, const Matrix *matrices, const Method *how, char *scratch, long each, int threads) {
#pragma omp parallel num_threads(threads)
    {
        tiles_begin();
#pragma omp for schedule(dynamic, 1)
        for (long number = 0; number < count; number++)
            step_of(matrices + number, how, scratch + omp_get_thread_num() * each);
        tiles_end();
    }
}
