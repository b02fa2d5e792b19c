/* The functions themselves; fused.c includes this once per type T. Matrices lie row by row. */

/* total = x + added where something is added, out = total / rms(total) * weight, scale = 1 / rms(total).
 * x, total: (rows, width); added, out: (rows, width) of T; weight: (width); scale: (rows). width is a multiple of 16. */
void NAME(norm_forward)(long rows, long width, const float *x, const T *added, float *total, const float *weight,
                        float eps, T *out, float *scale, int threads) {
    EACH
    for (long row = 0; row < rows; row++) {
        const float *own = x + row * width;
        Vector squares = {0};
        if (added) {
            float *sums = total + row * width;
            for (long i = 0; i < width; i += LANES) {
                Vector sum = load_float(own + i) + LOAD(added + row * width + i);
                store_float(sums + i, sum);
                squares += sum * sum;
            }
            own = sums;
        } else {
            for (long i = 0; i < width; i += LANES) squares += load_float(own + i) * load_float(own + i);
        }
        float factor = 1.0f / sqrtf(sum_of(squares) / width + eps);
        scale[row] = factor;
        for (long i = 0; i < width; i += LANES)
            STORE(out + row * width + i, load_float(own + i) * factor * load_float(weight + i));
    }
}

/* The gradients of norm_forward: `residual` is that of `total` from elsewhere, NULL where there is none; `for_added` is
 * for_x as T, NULL where nothing was added. part: (pieces, width), each the sum for `weight` over `piece` rows. */
void NAME(norm_backward)(long rows, long width, const T *slopes, const float *total, const float *scale,
                         const float *weight, const float *residual, float *for_x, T *for_added, float *part,
                         long piece, int threads) {
    long pieces = (rows + piece - 1) / piece;
    EACH
    for (long number = 0; number < pieces; number++) {
        float *for_weight = part + number * width;
        memset(for_weight, 0, width * sizeof *for_weight);
        long end = (number + 1) * piece < rows ? (number + 1) * piece : rows;
        for (long row = number * piece; row < end; row++) {
            const T *slope = slopes + row * width;
            const float *own = total + row * width;
            float factor = scale[row];
            Vector sum = {0};
            for (long i = 0; i < width; i += LANES) {
                Vector met = LOAD(slope + i) * (load_float(own + i) * factor);
                store_float(for_weight + i, load_float(for_weight + i) + met);
                sum += met * load_float(weight + i);
            }
            /* Moving along x changes its length only, which the norm takes away again. */
            float along = sum_of(sum) / width;
            for (long i = 0; i < width; i += LANES) {
                Vector normed = load_float(own + i) * factor;
                Vector out = (LOAD(slope + i) * load_float(weight + i) - normed * along) * factor;
                if (residual) out += load_float(residual + row * width + i);
                store_float(for_x + row * width + i, out);
                if (for_added) STORE(for_added + row * width + i, out);
            }
        }
    }
}

/* One head of one token: normed where there is a weight, turned by its place's angles, times `by`. */
INLINE void NAME(turn)(long size, const T *x, const float *weight, float factor, const float *cosines,
                       const float *sines, float by, T *out) {
    long half = size / 2;
    for (long i = 0; i < half; i += LANES) {
        Vector first = LOAD(x + i), second = LOAD(x + half + i);
        if (weight) {
            first *= factor * load_float(weight + i);
            second *= factor * load_float(weight + half + i);
        }
        Vector cosine = load_float(cosines + i) * by, sine = load_float(sines + i) * by;
        STORE(out + i, first * cosine - second * sine);
        STORE(out + half + i, second * cosine + first * sine);
    }
}

/* The gradient of turn; that of the weight is added to for_weight. size is at most 512. */
INLINE void NAME(turn_back)(long size, const T *slopes, const T *x, const float *weight, float factor,
                            const float *cosines, const float *sines, float by, T *out, float *for_weight) {
    long half = size / 2;
    float kept[512];
    Vector sum = {0};
    for (long i = 0; i < half; i += LANES) {
        Vector first = LOAD(slopes + i), second = LOAD(slopes + half + i);
        Vector cosine = load_float(cosines + i) * by, sine = load_float(sines + i) * by;
        Vector before = first * cosine + second * sine, after = second * cosine - first * sine;
        if (!weight) {
            STORE(out + i, before);
            STORE(out + half + i, after);
            continue;
        }
        Vector normed = LOAD(x + i) * factor, other = LOAD(x + half + i) * factor;
        store_float(for_weight + i, load_float(for_weight + i) + before * normed);
        store_float(for_weight + half + i, load_float(for_weight + half + i) + after * other);
        before *= load_float(weight + i);
        after *= load_float(weight + half + i);
        sum += before * normed + after * other;
        store_float(kept + i, before);
        store_float(kept + half + i, after);
    }
    if (!weight) return;
    float along = sum_of(sum) / size;
    for (long i = 0; i < size; i += LANES)
        STORE(out + i, (load_float(kept + i) - LOAD(x + i) * factor * along) * factor);
}

INLINE float NAME(inverse_rms)(long size, const T *x, float eps) {
    Vector squares = {0};
    for (long i = 0; i < size; i += LANES) squares += LOAD(x + i) * LOAD(x + i);
    return 1.0f / sqrtf(sum_of(squares) / size + eps);
}

/* Queries, keys and values as attention takes them, from where one product left them side by side.
 * packed: (batch * length, (heads + 2 * kv_heads) * size); cosines, sines: (length, size), both halves alike;
 * queries: (batch, heads, length, size), times `by`; keys, values: (batch, kv_heads, length, size); scale: (batch *
 * length, heads + kv_heads). The weights are NULL where heads are not normed. size is a multiple of 32. */
void NAME(heads_forward)(long batch, long length, long heads, long kv_heads, long size, const T *packed,
                         const float *query_weight, const float *key_weight, float eps, const float *cosines,
                         const float *sines, float by, T *queries, T *keys, T *values, float *scale, int threads) {
    EACH
    for (long token = 0; token < batch * length; token++) {
        long row = token / length, place = token % length;
        const T *own = packed + token * (heads + 2 * kv_heads) * size;
        float *factors = scale + token * (heads + kv_heads);
        const float *cosine = cosines + place * size, *sine = sines + place * size;
        for (long head = 0; head < heads; head++, own += size, factors++) {
            if (query_weight) *factors = NAME(inverse_rms)(size, own, eps);
            NAME(turn)(size, own, query_weight, *factors, cosine, sine, by,
                       queries + ((row * heads + head) * length + place) * size);
        }
        for (long head = 0; head < kv_heads; head++, own += size, factors++) {
            if (key_weight) *factors = NAME(inverse_rms)(size, own, eps);
            NAME(turn)(size, own, key_weight, *factors, cosine, sine, 1.0f,
                       keys + ((row * kv_heads + head) * length + place) * size);
        }
        for (long head = 0; head < kv_heads; head++, own += size)
            memcpy(values + ((row * kv_heads + head) * length + place) * size, own, size * sizeof *own);
    }
}

/* The gradient of heads_forward. for_packed is like packed; part: (pieces, 2, size), for the weight of the queries and
 * that of the keys, each over `piece` tokens. */
void NAME(heads_backward)(long batch, long length, long heads, long kv_heads, long size, const T *for_queries,
                          const T *for_keys, const T *for_values, const T *packed, const float *query_weight,
                          const float *key_weight, const float *scale, const float *cosines, const float *sines,
                          float by, T *for_packed, float *part, long piece, int threads) {
    long tokens = batch * length, pieces = (tokens + piece - 1) / piece, wide = (heads + 2 * kv_heads) * size;
    EACH
    for (long number = 0; number < pieces; number++) {
        float *for_weights = part + number * 2 * size;
        memset(for_weights, 0, 2 * size * sizeof *for_weights);
        long end = (number + 1) * piece < tokens ? (number + 1) * piece : tokens;
        for (long token = number * piece; token < end; token++) {
            long row = token / length, place = token % length;
            const T *own = packed + token * wide;
            T *out = for_packed + token * wide;
            const float *factors = scale + token * (heads + kv_heads);
            const float *cosine = cosines + place * size, *sine = sines + place * size;
            for (long head = 0; head < heads; head++, own += size, out += size, factors++)
                NAME(turn_back)(size, for_queries + ((row * heads + head) * length + place) * size, own, query_weight,
                                *factors, cosine, sine, by, out, for_weights);
            for (long head = 0; head < kv_heads; head++, own += size, out += size, factors++)
                NAME(turn_back)(size, for_keys + ((row * kv_heads + head) * length + place) * size, own, key_weight,
                                *factors, cosine, sine, 1.0f, out, for_weights + size);
            for (long head = 0; head < kv_heads; head++, out += size)
                memcpy(out, for_values + ((row * kv_heads + head) * length + place) * size, size * sizeof *out);
        }
    }
}

/* SwiGLU: out = silu(gate) * up. packed: (rows, 2 * width), the gate first; out: (rows, width). Where width is no
 * multiple of 16, the last vector of a row overlaps the one before; width is at least 16. */
void NAME(gated_forward)(long rows, long width, const T *packed, T *out, int threads) {
    EACH
    for (long row = 0; row < rows; row++) {
        const T *gate = packed + row * 2 * width, *up = gate + width;
        for (long start = 0; start < width; start += LANES) {
            long i = start + LANES <= width ? start : width - LANES;
            Vector x = LOAD(gate + i);
            STORE(out + row * width + i, x * LOAD(up + i) / (1.0f + exponential(-x)));
        }
    }
}

void NAME(gated_backward)(long rows, long width, const T *slopes, const T *packed, T *for_packed, int threads) {
    EACH
    for (long row = 0; row < rows; row++) {
        const T *gate = packed + row * 2 * width, *up = gate + width;
        T *for_gate = for_packed + row * 2 * width, *for_up = for_gate + width;
        for (long start = 0; start < width; start += LANES) {
            long i = start + LANES <= width ? start : width - LANES;
            Vector x = LOAD(gate + i), slope = LOAD(slopes + row * width + i);
            Vector open = 1.0f / (1.0f + exponential(-x));
            STORE(for_gate + i, slope * LOAD(up + i) * open * (1.0f + x * (1.0f - open)));
            STORE(for_up + i, slope * x * open);
        }
    }
}

INLINE Vector NAME(load_some)(const T *from, long count) {
    T some[LANES] = {0};
    memcpy(some, from, count * sizeof *from);
    return LOAD(some);
}

INLINE void NAME(store_some)(T *to, Vector x, long count) {
    T some[LANES];
    STORE(some, x);
    memcpy(to, some, count * sizeof *to);
}

/* Causal softmax in place. scores: (blocks, queries, keys), where query i of a block sees the first `before` + i + 1
 * keys; it gives the others zero. There are at most 8,192 keys. */
void NAME(softmax_forward)(long blocks, long queries, long keys, long before, T *scores, int threads) {
    EACH
    for (long row = 0; row < blocks * queries; row++) {
        T *own = scores + row * keys;
        long seen = before + row % queries + 1, whole = seen / LANES * LANES, rest = seen - whole;
        Integers last = lanes_below(rest);
        float powers[8192 + LANES];
        Vector most = all(-INFINITY), tail = all(-INFINITY);
        for (long i = 0; i < whole; i += LANES) {
            Vector x = LOAD(own + i);
            most = either(x > most, x, most);
        }
        if (rest) {
            tail = either(last, NAME(load_some)(own + whole, rest), tail);
            most = either(tail > most, tail, most);
        }
        float top = largest_of(most);
        Vector sum = {0};
        for (long i = 0; i < whole; i += LANES) {
            Vector power = exponential(LOAD(own + i) - top);
            store_float(powers + i, power);
            sum += power;
        }
        if (rest) {
            Vector power = either(last, exponential(tail - top), all(0.0f));
            store_float(powers + whole, power);
            sum += power;
        }
        float share = 1.0f / sum_of(sum);
        for (long i = 0; i < whole; i += LANES) STORE(own + i, load_float(powers + i) * share);
        if (rest) NAME(store_some)(own + whole, load_float(powers + whole) * share, rest);
        memset(own + seen, 0, (keys - seen) * sizeof *own);
    }
}

/* Its gradient, in place of the slopes. */
void NAME(softmax_backward)(long blocks, long queries, long keys, long before, T *slopes, const T *chances,
                            int threads) {
    EACH
    for (long row = 0; row < blocks * queries; row++) {
        T *own = slopes + row * keys;
        const T *chance = chances + row * keys;
        long seen = before + row % queries + 1, whole = seen / LANES * LANES, rest = seen - whole;
        Vector sum = {0};
        for (long i = 0; i < whole; i += LANES) sum += LOAD(own + i) * LOAD(chance + i);
        if (rest) sum += NAME(load_some)(own + whole, rest) * NAME(load_some)(chance + whole, rest);
        float mean = sum_of(sum);
        for (long i = 0; i < whole; i += LANES) STORE(own + i, (LOAD(own + i) - mean) * LOAD(chance + i));
        if (rest) {
            Vector x = NAME(load_some)(own + whole, rest), share = NAME(load_some)(chance + whole, rest);
            NAME(store_some)(own + whole, (x - mean) * share, rest);
        }
        memset(own + seen, 0, (keys - seen) * sizeof *own);
    }
}

/* Cross-entropy: scores become slopes of the loss, in place, and losses[row] is -log of the chance of its target; with
 * smoothing each target is spread evenly by that share; the loss of a target that is no word is no number. scores:
 * (rows, words); targets, losses: (rows). */
void NAME(cross_entropy)(long rows, long words, T *scores, const int64_t *targets, float smoothing, float *losses,
                         int threads) {
    long whole = words / LANES * LANES, rest = words - whole;
    Integers last = lanes_below(rest);
    EACH
    for (long row = 0; row < rows; row++) {
        if ((uint64_t)targets[row] >= (uint64_t)words) {
            losses[row] = NAN;
            continue;
        }
        T *own = scores + row * words, *at = own + targets[row];
        Vector most = all(-INFINITY), tail = most, sum = {0}, scores_sum = {0};
        for (long i = 0; i < whole; i += LANES) {
            Vector x = LOAD(own + i);
            most = either(x > most, x, most);
            scores_sum += x;
        }
        if (rest) {
            tail = either(last, NAME(load_some)(own + whole, rest), tail);
            most = either(tail > most, tail, most);
            scores_sum += either(last, tail, all(0.0f));
        }
        float top = largest_of(most);
        for (long i = 0; i < whole; i += LANES) sum += exponential(LOAD(own + i) - top);
        if (rest) sum += either(last, exponential(tail - top), all(0.0f));
        float total = sum_of(sum), share = 1.0f / total, evenly = smoothing / words;
        T some[LANES] = {*at};
        float wanted = LOAD(some)[0];
        losses[row] = (top - wanted) + logf(total);
        if (smoothing) losses[row] += smoothing * wanted - evenly * sum_of(scores_sum);
        for (long i = 0; i < whole; i += LANES)
            STORE(own + i, exponential(LOAD(own + i) - top) * share - evenly);
        if (rest) NAME(store_some)(own + whole, exponential(tail - top) * share - evenly, rest);
        STORE(some, exponential(all(wanted - top)) * share - evenly - (1.0f - smoothing));
        *at = some[0];
    }
}
