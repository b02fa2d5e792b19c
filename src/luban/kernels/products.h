/* Attention and the gradient of a matrix, by the blocks of tiles.h. All sums go in an order that the number of threads
 * does not change. `scratch` is memory of the threads, each with what the function with _scratch says, in bytes. */

INLINE long blocks_of(long length) { return (length + BLOCK - 1) / BLOCK; }

INLINE long smaller(long a, long b) { return a < b ? a : b; }

/* All rows of a head as the right operand: as rows (their sum is over rows), `step` of `steps` being the first. */
static void pack_rows(const Number *from, long stride, long length, long size, long steps, Number *to) {
    for (long row = 0; row < length; row += BLOCK)
        for (long column = 0; column < size; column += BLOCK) {
            Number *tile = to + (column / 16 * steps + row / BLOCK) * TILE;
            right_rows(from + row * stride + column, stride, length - row, BLOCK, tile, tile + steps * TILE);
        }
}

/* The same as columns (their sum is over the numbers of a row). */
static void pack_columns(const Number *from, long stride, long length, long size, Number *to) {
    long steps = size / BLOCK;
    for (long row = 0; row < blocks_of(length) * BLOCK; row += 16)
        for (long step = 0; step < steps; step++)
            right_columns(from + row * stride + step * BLOCK, stride, length - row,
                          to + (row / 16 * steps + step) * TILE);
}

/* 32 rows of a head as the left operand. */
static void pack_left(const Number *from, long stride, long count, long size, Number *to) {
    for (long step = 0; step < size / BLOCK; step++) left_rows(from + step * BLOCK, stride, count, to + step * STEP);
}

long attention_forward_scratch(long length, long size) {
    long places = blocks_of(length) * BLOCK;
    return 2 * places * size * sizeof(Number)            /* keys and values */
           + places * BLOCK * (sizeof(Number) + sizeof(float)) /* probabilities and scores of 32 queries */
           + BLOCK * size * sizeof(Number) + STEP * sizeof(float);
}

/* Causal attention: out = softmax(queries keys^T) values, logs = log of the sum of the exponentials.
 * queries: (batch, heads, length, size), already scaled; keys, values: (batch, kv_heads, length, size); out: (batch,
 * length, heads, size); logs: (batch, heads, length). size is a multiple of 32. */
void attention_forward(long batch, long heads, long kv_heads, long length, long size, const Number *queries,
                       const Number *keys, const Number *values, Number *out, float *logs, char *scratch,
                       int threads) {
    long blocks = blocks_of(length), depth = size / BLOCK, sharing = heads / kv_heads;
#pragma omp parallel num_threads(threads)
    {
        Number *key = (Number *)(scratch + omp_get_thread_num() * attention_forward_scratch(length, size));
        Number *value = key + blocks * BLOCK * size, *chances = value + blocks * BLOCK * size;
        Number *query = chances + blocks * STEP;
        float *scores = (float *)(query + BLOCK * size), *mixed = scores + blocks * STEP;
        tiles_begin();
#pragma omp for schedule(static)
        for (long pair = 0; pair < batch * kv_heads; pair++) {
            pack_columns(keys + pair * length * size, size, length, size, key);
            pack_rows(values + pair * length * size, size, length, size, blocks, value);
            for (long head = pair * sharing; head < (pair + 1) * sharing; head++)
                for (long block = 0; block < blocks; block++) {
                    long first = block * BLOCK, count = smaller(BLOCK, length - first);
                    pack_left(queries + (head * length + first) * size, size, count, size, query);
                    for (long seen = 0; seen <= block; seen++)
                        multiply(depth, query, key + 2 * seen * depth * TILE, key + (2 * seen + 1) * depth * TILE,
                                 scores + seen * STEP, BLOCK, 0);
                    float shares[BLOCK];
                    for (long row = 0; row < BLOCK; row++) {
                        float *own = scores + row * BLOCK, *last = own + block * STEP;
                        Vector least = all(-INFINITY), most = least, sum = {0};
                        store_float(last, either(lanes_below(row + 1), load_float(last), least));
                        store_float(last + 16, either(lanes_below(row - 15), load_float(last + 16), least));
                        for (float *x = own; x <= last; x += STEP) {
                            Vector a = load_float(x), b = load_float(x + 16);
                            a = either(a > b, a, b);
                            most = either(a > most, a, most);
                        }
                        float top = largest_of(most);
                        Number *to = chances + row * BLOCK;
                        for (float *x = own; x < last; x += STEP, to += STEP)
                            for (long i = 0; i < BLOCK; i += 16) {
                                Vector power = exponential(load_float(x + i) - top);
                                store_bfloat16(to + i, power);
                                sum += power;
                            }
                        for (long i = 0; i < BLOCK; i += 16) {
                            Vector power = either(lanes_below(row + 1 - i), exponential(load_float(last + i) - top),
                                                  all(0.0f));
                            store_bfloat16(to + i, power);
                            sum += power;
                        }
                        float whole = sum_of(sum);
                        shares[row] = 1.0f / whole;
                        if (row < count) logs[head * length + first + row] = top + logf(whole);
                    }
                    Number *to = out + ((head / heads * length + first) * heads + head % heads) * size;
                    for (long column = 0; column < size; column += BLOCK) {
                        Number *right = value + column / 16 * blocks * TILE;
                        multiply(block + 1, chances, right, right + blocks * TILE, mixed, BLOCK, 0);
                        for (long row = 0; row < count; row++)
                            for (long i = 0; i < BLOCK; i += 16)
                                store_bfloat16(to + row * heads * size + column + i,
                                               load_float(mixed + row * BLOCK + i) * shares[row]);
                    }
                }
        }
        tiles_end();
    }
}

#define GROUP 4 /* blocks of keys whose probabilities are held at a time */

long attention_backward_scratch(long sharing, long length, long size) {
    long blocks = blocks_of(length), places = blocks * BLOCK;
    return places * size * (3 * sizeof(Number)                                     /* keys twice, values */
                            + sharing * (4 * sizeof(Number) + sizeof(float)))      /* queries, slopes twice; for queries */
           + sharing * places * 2 * sizeof(float)                                  /* logs, and rows' sums */
           + (2 * GROUP * sharing * blocks + GROUP + 1) * STEP * sizeof(Number)    /* probabilities, slopes of scores */
           + 2 * STEP * sizeof(float);
}

/* Its gradients. slopes and out are (batch, length, heads, size); the others as their arguments are. */
void attention_backward(long batch, long heads, long kv_heads, long length, long size, const Number *slopes,
                        const Number *out, const Number *queries, const Number *keys, const Number *values,
                        const float *logs, Number *for_queries, Number *for_keys, Number *for_values, char *scratch,
                        int threads) {
    long blocks = blocks_of(length), places = blocks * BLOCK, depth = size / BLOCK, sharing = heads / kv_heads;
    long all_blocks = sharing * blocks;
#pragma omp parallel num_threads(threads)
    {
        Number *key = (Number *)(scratch + omp_get_thread_num() * attention_backward_scratch(sharing, length, size));
        Number *key_rows = key + places * size, *value = key_rows + places * size;
        Number *query = value + places * size, *query_rows = query + sharing * places * size;
        Number *slope = query_rows + sharing * places * size, *slope_rows = slope + sharing * places * size;
        Number *chances = slope_rows + sharing * places * size; /* GROUP rows of blocks, as the left by their columns */
        Number *turned = chances + GROUP * all_blocks * STEP;   /* the same of the scores' slopes */
        Number *straight = turned + GROUP * all_blocks * STEP, *chance = straight + GROUP * STEP;
        float *for_query = (float *)(chance + STEP), *log = for_query + sharing * places * size;
        float *along = log + sharing * places, *score = along + sharing * places, *met = score + STEP;
        tiles_begin();
#pragma omp for schedule(static)
        for (long pair = 0; pair < batch * kv_heads; pair++) {
            pack_columns(keys + pair * length * size, size, length, size, key);
            pack_rows(keys + pair * length * size, size, length, size, blocks, key_rows);
            pack_columns(values + pair * length * size, size, length, size, value);
            for (long number = 0; number < sharing; number++) {
                long head = pair * sharing + number, from = (head / heads * length * heads + head % heads) * size;
                const Number *asked = queries + head * length * size;
                pack_rows(asked, size, length, size, all_blocks, query_rows + number * blocks * TILE);
                pack_rows(slopes + from, heads * size, length, size, all_blocks, slope_rows + number * blocks * TILE);
                for (long block = 0; block < blocks; block++) {
                    long first = block * BLOCK, at = (number * blocks + block) * depth * STEP;
                    pack_left(asked + first * size, size, length - first, size, query + at);
                    pack_left(slopes + from + first * heads * size, heads * size, length - first, size, slope + at);
                }
                for (long place = 0; place < places; place++) {
                    Vector sum = {0};
                    for (long i = 0; place < length && i < size; i += 16)
                        sum += load_bfloat16(slopes + from + place * heads * size + i) *
                               load_bfloat16(out + from + place * heads * size + i);
                    along[number * places + place] = sum_of(sum);
                    log[number * places + place] = place < length ? logs[head * length + place] : INFINITY;
                }
            }
            for (long start = 0; start < blocks; start += GROUP) {
                long end = smaller(start + GROUP, blocks);
                for (long one = 0; one < all_blocks; one++) {
                    long block = one % blocks, seen = smaller(end, block + 1) - start;
                    if (seen <= 0) continue;
                    for (long number = 0; number < seen; number++) {
                        long right = 2 * (start + number) * depth * TILE, beside = right + depth * TILE;
                        multiply(depth, query + one * depth * STEP, key + right, key + beside, score, BLOCK, 0);
                        multiply(depth, slope + one * depth * STEP, value + right, value + beside, met, BLOCK, 0);
                        int last = start + number == block;
                        for (long row = 0; row < BLOCK; row++)
                            for (long i = 0; i < BLOCK; i += 16) {
                                long at = row * BLOCK + i, place = one * BLOCK + row;
                                Vector power = exponential(load_float(score + at) - log[place]);
                                if (last) power = either(lanes_below(row + 1 - i), power, all(0.0f));
                                store_bfloat16(chance + at, power);
                                store_bfloat16(straight + number * STEP + at,
                                               power * (load_float(met + at) - along[place]));
                            }
                        long to = (number * all_blocks + one) * STEP;
                        left_columns(chance, BLOCK, BLOCK, BLOCK, chances + to);
                        left_columns(straight + number * STEP, BLOCK, BLOCK, BLOCK, turned + to);
                    }
                    for (long column = 0; column < size; column += BLOCK) {
                        Number *right = key_rows + (column / 16 * blocks + start) * TILE;
                        multiply(seen, straight, right, right + blocks * TILE, for_query + one * BLOCK * size + column,
                                 size, start > 0);
                    }
                }
                for (long block = start; block < end; block++)
                    for (long column = 0; column < size; column += BLOCK) {
                        for (long number = 0; number < sharing; number++) {
                            long one = number * blocks + block, left = ((block - start) * all_blocks + one) * STEP;
                            long right = (column / 16 * all_blocks + one) * TILE, beside = right + all_blocks * TILE;
                            multiply(blocks - block, chances + left, slope_rows + right, slope_rows + beside, score,
                                     BLOCK, number > 0);
                            multiply(blocks - block, turned + left, query_rows + right, query_rows + beside, met, BLOCK,
                                     number > 0);
                        }
                        long count = smaller(BLOCK, length - block * BLOCK);
                        long to = (pair * length + block * BLOCK) * size + column;
                        for (long row = 0; row < count; row++)
                            for (long i = 0; i < BLOCK; i += 16) {
                                store_bfloat16(for_values + to + row * size + i, load_float(score + row * BLOCK + i));
                                store_bfloat16(for_keys + to + row * size + i, load_float(met + row * BLOCK + i));
                            }
                    }
            }
            for (long number = 0; number < sharing; number++)
                for (long i = 0; i < length * size; i += 16)
                    store_bfloat16(for_queries + (pair * sharing + number) * length * size + i,
                                   load_float(for_query + number * places * size + i));
        }
        tiles_end();
    }
}

#ifdef __AMX_BF16__ /* without a matrix unit torch's own product is as fast (benchmarks/LOG.md) */
#define TOKENS 512 /* whose products are summed at a time */

/* Part of a matrix, into or out of a block. */
INLINE void copy_block(const float *from, long from_stride, long rows, long columns, float *to, long to_stride) {
    for (long row = 0; row < rows; row++)
        memcpy(to + row * to_stride, from + row * from_stride, columns * sizeof *from);
}

/* The gradient of a matrix: out = slopes^T states, or that much more; (outputs, inputs) of float. slopes: (tokens, outputs); states: (tokens,
 * inputs). left, right: TOKENS * (outputs or inputs, rounded up to 32) numbers. */
void matrix_backward(long tokens, long outputs, long inputs, const Number *slopes, const Number *states, float *out,
                     int more, Number *left, Number *right, int threads) {
    long all_rows = blocks_of(outputs), columns = blocks_of(inputs);
#pragma omp parallel num_threads(threads)
    {
        /* A thread's rows are its own from here on, and what it packs stays in its cache. */
        long mine = omp_get_thread_num(), of = omp_get_num_threads();
        long from = all_rows * mine / of, to = all_rows * (mine + 1) / of;
        tiles_begin();
        for (long start = 0; start < tokens; start += TOKENS) {
            long count = smaller(TOKENS, tokens - start), steps = blocks_of(count);
#pragma omp for schedule(static)
            for (long step = 0; step < steps; step++)
                for (long column = 0; column < columns; column++) {
                    Number *tile = right + (2 * column * steps + step) * TILE;
                    right_rows(states + (start + step * BLOCK) * inputs + column * BLOCK, inputs, count - step * BLOCK,
                               inputs - column * BLOCK, tile, tile + steps * TILE);
                }
            for (long step = 0; step < steps; step++)
                for (long row = from; row < to; row++)
                    left_columns(slopes + (start + step * BLOCK) * outputs + row * BLOCK, outputs, count - step * BLOCK,
                                 outputs - row * BLOCK, left + (row * steps + step) * STEP);
            for (long row = from; row < to; row++) {
                long rows = smaller(BLOCK, outputs - row * BLOCK);
                for (long column = 0; column < columns; column++) {
                    float *block = out + (row * inputs + column) * BLOCK;
                    const Number *own = left + row * steps * STEP, *tile = right + 2 * column * steps * TILE;
                    long wide = smaller(BLOCK, inputs - column * BLOCK);
                    if (rows == BLOCK && wide == BLOCK) {
                        multiply(steps, own, tile, tile + steps * TILE, block, inputs, more || start > 0);
                        continue;
                    }
                    float edge[STEP];
                    if (more || start > 0) copy_block(block, inputs, rows, wide, edge, BLOCK);
                    multiply(steps, own, tile, tile + steps * TILE, edge, BLOCK, more || start > 0);
                    copy_block(edge, BLOCK, rows, wide, block, inputs);
                }
            }
#pragma omp barrier /* before `right` is written again */
        }
        tiles_end();
    }
}
#endif
