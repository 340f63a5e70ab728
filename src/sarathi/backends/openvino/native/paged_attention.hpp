// Attention over a paged KV cache of 8-bit integers, for hybrid batches of prefill chunks and
// decodes. Computes in f32 with AVX2 and FMA, which the caller checks for.
//
// A task is a tile of query rows (tokens times the query heads of one KV head) that share each
// load of keys and values. It goes over the keys in chunks, with an online softmax: the partial
// results of two chunks are merged by their maxima and sums.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace sarathi {

constexpr int BLOCK = 32;     // tokens of a KV block
constexpr int CHUNK = 256;    // keys over which a softmax is taken at once; a multiple of BLOCK
// Elements between rows of scores: with a power of two, rows would compete for the same cache lines.
constexpr int SCORES_STRIDE = CHUNK + 16;
constexpr int TILE_ROWS = 48;  // query rows of a task, or those of one token if they are more
constexpr int LANES = 8;
constexpr float NO_SCORE = -1e30f;  // maximum of no scores; finite: differences must not be NaN

// Vectors of the compiler (GCC and Clang): arithmetic on them needs no intrinsics.
typedef float Floats __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Floats broadcast(float x) { return x - Floats{}; }
inline Floats load(const float* p) { return *reinterpret_cast<const Floats*>(p); }
inline Floats load(const uint8_t* p) {  // __builtin_convertvector takes many more instructions
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
inline void store(float* p, Floats x) { *reinterpret_cast<Floats*>(p) = x; }

inline float horizontal_sum(Floats x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

// e^x for x <= 0, within 2 units in the last place; exactly 0 below -87.
inline Floats exp_nonpositive(Floats x) {
    const Floats clamped = x > broadcast(-87.0f) ? x : broadcast(-87.0f);
    // x = n ln 2 + r: adding 1.5 * 2^23 rounds to an integer, and ln 2 is subtracted in two parts.
    const Floats n = (clamped * 1.44269504f + 12582912.0f) - 12582912.0f;
    const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats y = broadcast(1.3888889e-3f);  // Taylor polynomial
    for (float c : {8.3333333e-3f, 4.1666666e-2f, 1.6666666e-1f, 0.5f, 1.0f, 1.0f}) y = y * r + c;
    const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
    Floats power;
    std::memcpy(&power, &exponent, sizeof power);
    return x > broadcast(-87.0f) ? y * power : Floats{};
}

// c[R, N * LANES] += a[R, depth] @ b[depth, N * LANES], with rows `lda`, `ldb` and `ldc` elements
// apart. `next` has the shape of `b` and is read after it: it is prefetched, since blocks are too
// short for the processor's own prefetching.
template <int R, int N, class T>
inline void multiply_tile(const float* a, size_t lda, const T* b, const T* next, size_t ldb,
                          float* c, size_t ldc, size_t depth) {
    Floats sums[R][N];
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) sums[r][n] = load(c + r * ldc + n * LANES);
    for (size_t k = 0; k < depth; k++) {
        if constexpr (N == 4 && sizeof(T) == 1) __builtin_prefetch(next + k * ldb);
        Floats row[N];
        for (int n = 0; n < N; n++) row[n] = load(b + k * ldb + n * LANES);
        for (int r = 0; r < R; r++) {
            const Floats x = broadcast(a[r * lda + k]);
            for (int n = 0; n < N; n++) sums[r][n] += x * row[n];
        }
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) store(c + r * ldc + n * LANES, sums[r][n]);
}

// The widest tiles whose sums fit in 16 registers; `width` is a multiple of 2 * LANES.
template <int R, class T>
void multiply_rows(const float* a, size_t lda, const T* b, const T* next, size_t ldb, float* c,
                   size_t ldc, size_t depth, size_t width) {
    size_t n = 0;
    if constexpr (R <= 3)
        for (; n + 4 * LANES <= width; n += 4 * LANES)
            multiply_tile<R, 4>(a, lda, b + n, next + n, ldb, c + n, ldc, depth);
    for (; n < width; n += 2 * LANES)
        multiply_tile<R, 2>(a, lda, b + n, next + n, ldb, c + n, ldc, depth);
}

template <class T>
void multiply(const float* a, size_t lda, const T* b, const T* next, size_t ldb, float* c,
              size_t ldc, size_t rows, size_t depth, size_t width) {
    for (; rows >= 6; rows -= 6, a += 6 * lda, c += 6 * ldc)
        multiply_rows<6>(a, lda, b, next, ldb, c, ldc, depth, width);
    switch (rows) {
        case 1: return multiply_rows<1>(a, lda, b, next, ldb, c, ldc, depth, width);
        case 2: return multiply_rows<2>(a, lda, b, next, ldb, c, ldc, depth, width);
        case 3: return multiply_rows<3>(a, lda, b, next, ldb, c, ldc, depth, width);
        case 4: return multiply_rows<4>(a, lda, b, next, ldb, c, ldc, depth, width);
        case 5: return multiply_rows<5>(a, lda, b, next, ldb, c, ldc, depth, width);
    }
}

// `dim` is a multiple of 2 * LANES, `window` is 0 for none.
struct Heads {
    size_t query, kv, dim;
    float scale;
    int window;
    size_t group() const { return query / kv; }
};

// The ragged sequences of a step: see sarathi.backends.step.Step.
struct Batch {
    const int32_t *query_starts, *past_lens, *block_ids, *block_starts;
    int sequences;

    int length(int sequence) const {
        return query_starts[sequence + 1] - query_starts[sequence];
    }
    int block(int sequence, int position) const {
        return block_ids[block_starts[sequence] + position / BLOCK];
    }
};

// Keys and values as bytes [blocks, heads]; those of one head in one block are keys [dim, BLOCK]
// or values [BLOCK, dim], then for each token a scale, then for each token its least element, f32.
// Keys are transposed so that a vector has those of consecutive tokens.
struct Cache {
    uint8_t *keys, *values;
    size_t kv_heads, dim;

    size_t stride() const { return dim * BLOCK + 2 * BLOCK * sizeof(float); }
    uint8_t* key(int block, int head) const { return keys + (block * kv_heads + head) * stride(); }
    uint8_t* value(int block, int head) const {
        return values + (block * kv_heads + head) * stride();
    }
    float* scales(uint8_t* elements) const {
        return reinterpret_cast<float*>(elements + dim * BLOCK);
    }
    void write(int block, int head, int slot, const float* k, const float* v) const {
        uint8_t *to_key = key(block, head), *to_value = value(block, head);
        quantize(k, to_key + slot, BLOCK, scales(to_key) + slot);
        quantize(v, to_value + slot * dim, 1, scales(to_value) + slot);
    }
    void quantize(const float* x, uint8_t* to, size_t step, float* scale) const {
        const auto [least, most] = std::minmax_element(x, x + dim);
        const float range = *most - *least, inverse = range > 0 ? 255 / range : 0;
        for (size_t d = 0; d < dim; d++) to[d * step] = uint8_t((x[d] - *least) * inverse + 0.5f);
        scale[0] = range / 255;
        scale[BLOCK] = *least;
    }
};

// Of a row of scores; the sum is that of e^(score - maximum).
struct Softmax {
    float maximum = NO_SCORE, sum = 0;
};

class Attention {
public:
    Attention(Heads heads, Batch batch, Cache cache, const float* q, const float* k,
              const float* v, float* out)
        : heads_(heads), batch_(batch), cache_(cache), q_(q), k_(k), v_(v), out_(out) {}

    // Computes everything. `parallel(n, f)` calls f(0) to f(n - 1), in any order and in parallel.
    template <class Parallel>
    void run(int threads, const Parallel& parallel) {
        plan(threads);
        parallel(writes_.size(), [this](size_t i) { write(writes_[i]); });
        partial_sums_.resize(partial_rows_ * heads_.dim);
        partial_softmax_.resize(partial_rows_);
        parallel(tasks_.size(), [this](size_t i) { attend(tasks_[i]); });
        parallel(split_.size(), [this](size_t i) { join(split_[i]); });
    }

private:
    struct Task {  // query tokens of a KV head against chunks of keys
        int sequence, head, token, tokens, chunk, chunks;
        ptrdiff_t partial;  // first row of its partial results, or -1: they are complete
    };

    void plan(int threads) {
        const int group = heads_.group(), tile = std::max(1, TILE_ROWS / group);
        for (int s = 0; s < batch_.sequences; s++) {
            const int length = batch_.length(s);
            for (int token = 0; token < length; token += tile) {
                const int tokens = std::min(tile, length - token);
                const int first = first_key(s, token) / CHUNK;
                const int chunks = (batch_.past_lens[s] + token + tokens + CHUNK - 1) / CHUNK;
                for (int head = 0; head < int(heads_.kv); head++)
                    tasks_.push_back({s, head, token, tokens, first, chunks - first, -1});
            }
        }
        // The keys of a prompt are written before any of the tasks that read them.
        for (const Task& task : tasks_)
            if (!is_decode(task)) writes_.push_back(task);
        // With few tasks, chunks of the keys of decodes become tasks, too. Partial results are
        // merged in the same order, so that the result is the same to the bit.
        if (tasks_.size() >= size_t(4 * threads)) return;
        std::vector<Task> parts;
        for (const Task& task : tasks_) {
            if (task.chunks == 1 || task.tokens > 1) {
                parts.push_back(task);
                continue;
            }
            split_.push_back(task);
            split_.back().partial = partial_rows_;
            for (int c = 0; c < task.chunks; c++, partial_rows_ += group)
                parts.push_back({task.sequence, task.head, task.token, 1, task.chunk + c, 1,
                                 partial_rows_});
        }
        tasks_ = std::move(parts);
    }

    int first_key(int sequence, int token) const {
        const int position = batch_.past_lens[sequence] + token;
        return heads_.window ? std::max(0, position - heads_.window + 1) : 0;
    }

    // A decode's only token is written by the one task that reads it.
    bool is_decode(const Task& task) const { return batch_.length(task.sequence) == 1; }

    void write(const Task& task) const {
        for (int t = task.token; t < task.token + task.tokens; t++) {
            const size_t row = batch_.query_starts[task.sequence] + t;
            const int position = batch_.past_lens[task.sequence] + t;
            const size_t offset = (row * heads_.kv + task.head) * heads_.dim;
            cache_.write(batch_.block(task.sequence, position), task.head, position % BLOCK,
                         k_ + offset, v_ + offset);
        }
    }

    uint8_t* keys_at(const Task& task, int position) const {
        return cache_.key(batch_.block(task.sequence, position), task.head);
    }

    uint8_t* values_at(const Task& task, int position) const {
        return cache_.value(batch_.block(task.sequence, position), task.head);
    }

    void attend(const Task& task) {
        const size_t dim = heads_.dim, group = heads_.group(), rows = task.tokens * group;
        thread_local std::vector<float> memory;
        thread_local std::vector<Softmax> softmax, chunk;  // of each row
        const size_t needed = rows * (SCORES_STRIDE + 3 * dim) + BLOCK * dim;
        if (memory.size() < needed) memory.resize(needed);
        softmax.resize(rows);
        chunk.resize(rows);
        float *queries = memory.data(), *scores = queries + rows * dim;
        float *result = scores + rows * SCORES_STRIDE, *sums = result + rows * dim;
        float* dequantized = sums + rows * dim;  // a block
        const int past = batch_.past_lens[task.sequence], first = past + task.token;
        const int keys = first + task.tokens;  // of the context
        if (is_decode(task) && (task.chunk + task.chunks) * CHUNK >= keys) write(task);
        load_queries(task, queries);
        for (int c = task.chunk; c < task.chunk + task.chunks; c++) {
            const int start = c * CHUNK, end = std::min(start + CHUNK, keys);
            std::fill(scores, scores + rows * SCORES_STRIDE, 0.0f);
            for (int t = start; t < end; t += BLOCK)
                multiply_keys(queries, keys_at(task, t),
                              t + BLOCK < end ? keys_at(task, t + BLOCK) : values_at(task, start),
                              scores + (t - start), rows, dequantized);
            if (!dequantizes(rows)) scale_keys(task, start, end, queries, scores, rows);
            float* into = c == task.chunk ? result : sums;
            std::fill(into, into + rows * dim, 0.0f);
            for (size_t r = 0; r < rows; r++) {
                const int token = int(r / group);
                chunk[r] = apply_softmax(scores + r * SCORES_STRIDE,
                                         first_key(task.sequence, task.token + token) - start,
                                         first + token + 1 - start, end - start);
            }
            if (!dequantizes(rows)) scale_values(task, start, end, scores, into, rows);
            for (int t = start; t < end; t += BLOCK)
                multiply_values(scores + (t - start), values_at(task, t),
                                t + BLOCK < end ? values_at(task, t + BLOCK)
                                                : keys_at(task, std::min(end, keys - 1)),
                                into, rows, std::min(BLOCK, end - t), dequantized);
            for (size_t r = 0; r < rows; r++)
                if (c == task.chunk)
                    softmax[r] = chunk[r];
                else
                    merge(softmax[r], result + r * dim, chunk[r], sums + r * dim);
        }
        if (task.partial >= 0) {
            std::copy(result, result + rows * dim, &partial_sums_[task.partial * dim]);
            std::copy(softmax.begin(), softmax.end(), &partial_softmax_[task.partial]);
        } else {
            normalize(task, softmax.data(), result);
        }
    }

    // Whether a block is dequantised once, since several tiles of rows read it. Otherwise products
    // are those of the bytes, and scaled afterwards.
    static bool dequantizes(size_t rows) { return rows > 6; }

    // scores[rows, tokens of the block] = queries @ keys
    void multiply_keys(const float* queries, uint8_t* keys, const uint8_t* next, float* scores,
                       size_t rows, float* dequantized) const {
        const size_t dim = heads_.dim;
        if (!dequantizes(rows))
            return multiply(queries, dim, keys, next, BLOCK, scores, SCORES_STRIDE, rows, dim, BLOCK);
        const float* scale = cache_.scales(keys);
        for (int i = 0; i < BLOCK; i += LANES) {
            const Floats factor = load(scale + i), least = load(scale + BLOCK + i);
#pragma GCC unroll 4
            for (size_t d = i; d < BLOCK * dim; d += BLOCK)
                store(dequantized + d, load(keys + d) * factor + least);
        }
        const float* b = dequantized;
        multiply(queries, dim, b, b, BLOCK, scores, SCORES_STRIDE, rows, dim, BLOCK);
    }

    // sums[rows, dim] += weights[rows, tokens of the block] @ values
    void multiply_values(const float* weights, uint8_t* values, const uint8_t* next, float* sums,
                         size_t rows, size_t tokens, float* dequantized) const {
        const size_t dim = heads_.dim;
        if (!dequantizes(rows))
            return multiply(weights, SCORES_STRIDE, values, next, dim, sums, dim, rows, tokens, dim);
        const float* scale = cache_.scales(values);
        for (size_t t = 0; t < tokens; t++)
#pragma GCC unroll 4
            for (size_t d = t * dim; d < (t + 1) * dim; d += LANES)
                store(dequantized + d, load(values + d) * scale[t] + scale[BLOCK + t]);
        const float* b = dequantized;
        multiply(weights, SCORES_STRIDE, b, b, dim, sums, dim, rows, tokens, dim);
    }

    // Turns products with the bytes of keys into scores.
    void scale_keys(const Task& task, int start, int end, const float* queries, float* scores,
                    size_t rows) const {
        for (size_t r = 0; r < rows; r++) {
            Floats query{};
            for (size_t d = 0; d < heads_.dim; d += LANES)
                query += load(queries + r * heads_.dim + d);
            const Floats sum = broadcast(horizontal_sum(query));
            for (int t = start; t < end; t += BLOCK) {
                const float* scale = cache_.scales(keys_at(task, t));
                float* x = scores + r * SCORES_STRIDE + (t - start);
                for (int i = 0; i < BLOCK; i += LANES)
                    store(x + i, load(x + i) * load(scale + i) + sum * load(scale + BLOCK + i));
            }
        }
    }

    // Turns weights of values into those of their bytes; the least elements' part goes to `sums`.
    void scale_values(const Task& task, int start, int end, float* weights, float* sums,
                      size_t rows) const {
        for (size_t r = 0; r < rows; r++) {
            Floats least{};
            for (int t = start; t < end; t += BLOCK) {
                const float* scale = cache_.scales(values_at(task, t));
                float* x = weights + r * SCORES_STRIDE + (t - start);
                for (int i = 0; i < BLOCK; i += LANES) {
                    // Slots that are not written yet may hold NaN that another request left.
                    const Floats weight = load(x + i);
                    least += weight > 0 ? weight * load(scale + BLOCK + i) : Floats{};
                    store(x + i, weight > 0 ? weight * load(scale + i) : Floats{});
                }
            }
            std::fill(sums + r * heads_.dim, sums + (r + 1) * heads_.dim, horizontal_sum(least));
        }
    }

    void load_queries(const Task& task, float* queries) const {
        const size_t width = heads_.group() * heads_.dim;
        for (int t = 0; t < task.tokens; t++) {
            const float* from = q_ + query_offset(task, t);
            for (size_t i = 0; i < width; i++) queries[t * width + i] = from[i] * heads_.scale;
        }
    }

    size_t query_offset(const Task& task, int t) const {
        const size_t row = batch_.query_starts[task.sequence] + task.token + t;
        return (row * heads_.kv + task.head) * heads_.group() * heads_.dim;
    }

    // Replaces scores [low, high) by e^(score - maximum), and the others below `end` by 0.
    static Softmax apply_softmax(float* scores, int low, int high, int end) {
        low = std::clamp(low, 0, end);
        high = std::clamp(high, low, end);
        const int padded = (end + BLOCK - 1) / BLOCK * BLOCK;
        std::fill(scores, scores + low, -INFINITY);
        std::fill(scores + high, scores + padded, -INFINITY);
        Floats maxima = broadcast(NO_SCORE);
        for (int t = 0; t < padded; t += LANES) {
            const Floats x = load(scores + t);
            maxima = x > maxima ? x : maxima;
        }
        Softmax result;
        for (int i = 0; i < LANES; i++) result.maximum = std::max(result.maximum, maxima[i]);
        Floats sums{};
#pragma GCC unroll 4
        for (int t = 0; t < padded; t += LANES) {
            const Floats y = exp_nonpositive(load(scores + t) - result.maximum);
            store(scores + t, y);
            sums += y;
        }
        result.sum = horizontal_sum(sums);
        return result;
    }

    void merge(Softmax& a, float* sums, const Softmax& b, const float* more) const {
        const float maximum = std::max(a.maximum, b.maximum);
        const float x = std::exp(a.maximum - maximum), y = std::exp(b.maximum - maximum);
        for (size_t d = 0; d < heads_.dim; d++) sums[d] = sums[d] * x + more[d] * y;
        a = {maximum, a.sum * x + b.sum * y};
    }

    void join(const Task& task) {
        const size_t dim = heads_.dim, group = heads_.group();
        Softmax* softmax = &partial_softmax_[task.partial];
        float* sums = &partial_sums_[task.partial * dim];
        for (int c = 1; c < task.chunks; c++)
            for (size_t r = 0; r < group; r++)
                merge(softmax[r], sums + r * dim, softmax[c * group + r],
                      sums + (c * group + r) * dim);
        normalize(task, softmax, sums);
    }

    void normalize(const Task& task, const Softmax* softmax, const float* sums) const {
        const size_t dim = heads_.dim, group = heads_.group();
        for (int t = 0; t < task.tokens; t++)
            for (size_t g = 0; g < group; g++) {
                const size_t r = t * group + g;
                float* to = out_ + query_offset(task, t) + g * dim;
                for (size_t d = 0; d < dim; d++) to[d] = sums[r * dim + d] / softmax[r].sum;
            }
    }

    Heads heads_;
    Batch batch_;
    Cache cache_;
    const float *q_, *k_, *v_;
    float* out_;
    std::vector<Task> tasks_, writes_, split_;
    std::vector<float> partial_sums_;
    std::vector<Softmax> partial_softmax_;
    ptrdiff_t partial_rows_ = 0;
};

}  // namespace sarathi
