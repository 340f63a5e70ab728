// Products of activations with matrices of 4-bit or 8-bit integers, in integers: activations are
// rounded to int8. For AVX2, FMA and F16C, which the caller checks for.
//
// An instruction multiplies 32 unsigned with 32 signed bytes and adds pairs of products in 16 bits.
// Four bits times seven leave room there for the sums of 16 products, so that an addition for each
// multiplication is all that is needed until the end of a round; 5 or 6 bits for 8 or 4 products.
// Bytes of more are two planes of 4 bits.
//
// The sums of an output do not depend on how many rows are multiplied at once.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

namespace sarathi {

constexpr size_t PANEL = 16;     // rows of the matrix that a task multiplies with: two vectors
constexpr size_t STEP = 4;       // columns that an instruction sums up for a row
constexpr size_t MAX_ROUND = 32;  // columns after which sums of 16 bits might overflow
constexpr size_t MIN_ROUND = 16;
constexpr size_t TASK_ROWS = 64;  // of activations
constexpr float OUTLIER = 20;     // times the root of a row's mean square
// Bytes ahead: without it, one row of activations waits for memory a third of the time.
constexpr size_t PREFETCH = 1024;

struct Form {  // see sarathi.models.quantized.IntegerForm
    size_t bits, group;  // groups are a multiple of 16

    // Columns that share a scale of the activations.
    size_t round() const { return group % MAX_ROUND ? MIN_ROUND : MAX_ROUND; }
};

// Activations [rows, columns] as int8, with scales for each round of columns. If they are to be
// precise, rows with outliers are sums of two terms, of which the second is what rounding took from
// the first: the scale of a round with an outlier leaves little of its other elements.
class Activations {
public:
    Activations(size_t rows, size_t columns, size_t round, bool precise)
        : rows(rows), columns(columns), rounds(columns / round), round_(round), precise_(precise),
          values_((1 + precise) * rows * columns), scales_((1 + precise) * rows * rounds),
          sums_(scales_.size()), has_rest_(rows) {}

    const size_t rows, columns, rounds;

    // Terms from number `rows` on are the second ones.
    const int8_t* values(size_t term) const { return &values_[term * columns]; }
    const float* scales(size_t term) const { return &scales_[term * rounds]; }
    const float* sums(size_t term) const { return &sums_[term * rounds]; }  // of rounded elements
    bool has_rest(size_t row) const { return has_rest_[row]; }

    void quantize(size_t row, const float* x) {
        for (size_t r = 0; r < rounds; r++) quantize_round(x + r * round_, row, r);
        if (!precise_ || !has_outliers(x)) return;
        has_rest_[row] = true;
        for (size_t r = 0; r < rounds; r++) {
            float rest[MAX_ROUND];
            for (size_t i = 0; i < round_; i++)
                rest[i] = x[r * round_ + i] - scales(row)[r] * values(row)[r * round_ + i];
            quantize_round(rest, rows + row, r);
        }
    }

private:
    bool has_outliers(const float* x) const {
        __m256 most = _mm256_setzero_ps(), squares = _mm256_setzero_ps();
        for (size_t i = 0; i < columns; i += 8) {
            const __m256 v = _mm256_loadu_ps(x + i), square = _mm256_mul_ps(v, v);
            most = _mm256_max_ps(most, square);
            squares = _mm256_add_ps(squares, square);
        }
        alignas(32) float lanes[8], sums[8];
        _mm256_store_ps(lanes, most);
        _mm256_store_ps(sums, squares);
        const float total = std::accumulate(sums, sums + 8, 0.0f);
        return *std::max_element(lanes, lanes + 8) * float(columns) > OUTLIER * OUTLIER * total;
    }

    void quantize_round(const float* x, size_t term, size_t round) {
        int8_t* to = &values_[term * columns + round * round_];
        const size_t index = term * rounds + round;
        const __m256 sign = _mm256_set1_ps(-0.0f);
        __m256 most = _mm256_setzero_ps(), poison = _mm256_setzero_ps();
        for (size_t i = 0; i < round_; i += 8) {
            const __m256 v = _mm256_loadu_ps(x + i);
            most = _mm256_max_ps(most, _mm256_andnot_ps(sign, v));
            poison = _mm256_fmadd_ps(v, _mm256_setzero_ps(), poison);  // NaN if one is not finite
        }
        alignas(32) float lanes[8], poisons[8];
        _mm256_store_ps(lanes, most);
        _mm256_store_ps(poisons, poison);
        float maximum = 0, not_finite = 0;
        for (int i = 0; i < 8; i++) {
            maximum = std::max(maximum, lanes[i]);
            not_finite += poisons[i];
        }
        const float scale = maximum / 127;
        // Of the smallest scales the inverse is infinite: they vanish.
        const float inverse = scale > 1e-37f ? 1 / scale : 0;
        const __m256 factor = _mm256_set1_ps(inverse);
        __m256i total = _mm256_setzero_si256();
        for (size_t i = 0; i < round_; i += 8) {
            const __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), factor));
            total = _mm256_add_epi32(total, v);
            const __m128i words =
                _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
            _mm_storel_epi64((__m128i*)(to + i), _mm_packs_epi16(words, words));
        }
        alignas(32) uint32_t totals[8];  // unsigned, since NaN has made them large
        _mm256_store_si256((__m256i*)totals, total);
        uint32_t sum = 0;
        for (uint32_t t : totals) sum += t;
        scales_[index] = scale + not_finite;
        sums_[index] = scales_[index] * float(int32_t(sum));
    }

    size_t round_;
    bool precise_;
    std::vector<int8_t> values_;
    std::vector<float> scales_, sums_;
    std::vector<uint8_t> has_rest_;
};

// How the integers of a matrix lie in memory: two to a byte, or bytes whose values are below 32, 64
// or 256.
enum class Kind { NIBBLES, BITS5, BITS6, BYTES };

constexpr int planes(Kind kind) { return kind == Kind::BYTES ? 2 : 1; }

// Steps whose products, of two columns each, can be summed up in 16 bits.
constexpr int narrow_steps(Kind kind) {
    return kind == Kind::BITS5 ? 4 : kind == Kind::BITS6 ? 2 : int(MAX_ROUND / STEP);
}

struct alignas(64) CacheLine {
    uint8_t bytes[64];
};

// A matrix [rows, columns] in the order in which it is read. A panel has for each step (for each
// two if nibbles: the low and the high halves of bytes) the unsigned integers of all its rows; for
// each group the scale of each row; and, if there are zero points, what is added to each element of
// the group. Otherwise, what was signed has become unsigned by adding the same to all.
class PackedMatrix {
public:
    // `values`: [rows, columns * bits / 8], signed where there are no zero points. `zeros`, of type
    // `Zero`, and `scales`: [rows, columns / group]. `parallel(n, f)` calls f(0) to f(n - 1).
    template <class Zero, class Parallel>
    PackedMatrix(Form form, size_t rows, size_t columns, const uint8_t* values, const float* scales,
                 const Zero* zeros, const Parallel& parallel)
        : form(form), rows(rows), columns(columns), panels((rows + PANEL - 1) / PANEL),
          groups(columns / form.group),
          panel_lines_(PANEL * columns * form.bits / 8 / sizeof(CacheLine)),
          values_(panels * panel_lines_) {
        const size_t row_bytes = columns * form.bits / 8;
        uint8_t middle = 8;
        if (form.bits == 8) {
            const uint8_t sign = zeros ? 0 : 128;
            uint8_t least = 255, most = 0;
            for (size_t i = 0; i < rows * row_bytes; i++) {
                least = std::min<uint8_t>(least, values[i] ^ sign);
                most = std::max<uint8_t>(most, values[i] ^ sign);
            }
            const auto fits = [&](int half) {
                return zeros ? most < 2 * half : least >= 128 - half && most < 128 + half;
            };
            kind_ = fits(16) ? Kind::BITS5 : fits(32) ? Kind::BITS6 : Kind::BYTES;
            middle = kind_ == Kind::BITS5 ? 16 : kind_ == Kind::BITS6 ? 32 : 128;
        }
        added_ = zeros ? 0 : middle;
        std::vector<float> of_groups(panels * groups * group_vectors() * 8);
        const auto pack_row = [&](size_t row) {
            const size_t panel = row / PANEL, slot = row % PANEL;
            const uint8_t* from = values + row * row_bytes;
            uint8_t* to = values_[panel * panel_lines_].bytes + slot * STEP;
            for (size_t s = 0; s < row_bytes; s += STEP, to += PANEL * STEP)
                for (size_t i = 0; i < STEP; i++)
                    if (form.bits == 8) {
                        to[i] = from[s + i] + added_;
                    } else {
                        const int shift = i % 2 * 4;
                        const uint8_t low = from[s + i / 2] >> shift & 15;
                        const uint8_t high = from[s + 2 + i / 2] >> shift & 15;
                        to[i] = (low | high << 4) ^ (added_ | added_ << 4);
                    }
            for (size_t g = 0; g < groups; g++) {
                const float scale = scales[row * groups + g];
                float* to_group = &of_groups[(panel * groups + g) * group_vectors() * 8] + slot;
                to_group[0] = scale;
                if (zeros) to_group[PANEL] = -scale * float(zeros[row * groups + g]);
            }
        };
        parallel(panels, [&](size_t panel) {
            for (size_t row = panel * PANEL; row < std::min(rows, (panel + 1) * PANEL); row++)
                pack_row(row);
        });
        keep_scales(std::move(of_groups), std::is_same_v<Zero, float>);
    }

    const Form form;
    const size_t rows, columns, panels, groups;

    Kind kind() const { return kind_; }
    const uint8_t* values(size_t panel) const { return values_[panel * panel_lines_].bytes; }

    // The scales of a group, of either half of the panel's rows.
    inline __m256 scale(size_t panel, size_t group, size_t half) const {
        return of_group((panel * groups + group) * group_vectors() + half);
    }

    // What is added to the elements of a group.
    inline __m256 offset(size_t panel, size_t group, size_t half) const {
        if (added_) return _mm256_mul_ps(scale(panel, group, half), _mm256_set1_ps(-float(added_)));
        return of_group((panel * groups + group) * group_vectors() + 2 + half);
    }

private:
    size_t group_vectors() const { return added_ ? 2 : 4; }

    inline __m256 of_group(size_t vector) const {
        if (halves_.empty()) return _mm256_loadu_ps(&scales_[8 * vector]);
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)&halves_[8 * vector]));
    }

    // Half precision loses less than rounded activations do, and most files have it themselves. But
    // it has no numbers that are too large or too small; and where zero points are integers, it would
    // not leave zeros zero.
    void keep_scales(std::vector<float> scales, bool may_halve) {
        const bool fits = may_halve && std::all_of(scales.begin(), scales.end(), [](float x) {
            return x == 0 || (std::abs(x) > 6.2e-5f && std::abs(x) < 65000);
        });
        if (!fits) {
            scales_ = std::move(scales);
            return;
        }
        halves_.resize(scales.size());
        for (size_t i = 0; i < scales.size(); i++)
            halves_[i] = uint16_t(_cvtss_sh(scales[i], _MM_FROUND_TO_NEAREST_INT));
    }

    Kind kind_ = Kind::NIBBLES;
    uint8_t added_ = 0;  // to each integer, so that it is unsigned; 0 where there are zero points
    size_t panel_lines_;
    std::vector<CacheLine> values_;
    std::vector<float> scales_;      // one of these is empty
    std::vector<uint16_t> halves_;
};

// Sums of a round: the products of R rows of activations with a panel.
template <int R, Kind KIND>
struct RoundSums {
    __m256i narrow[R][2][planes(KIND)];  // of 16 bits
    __m256i wide[R][2];                  // of 32 bits

    // Adds the products of step `s` with four columns.
    inline __attribute__((always_inline)) void add(int s, int plane, const int8_t* a,
                                                   size_t stride, __m256i w0, __m256i w1) {
        for (int r = 0; r < R; r++) {
            int32_t four;
            std::memcpy(&four, a + r * stride, STEP);
            const __m256i x = _mm256_set1_epi32(four);
            __m256i *s0 = &narrow[r][0][plane], *s1 = &narrow[r][1][plane];
            const __m256i p0 = _mm256_maddubs_epi16(w0, x), p1 = _mm256_maddubs_epi16(w1, x);
            const bool first = s % narrow_steps(KIND) == 0;
            *s0 = first ? p0 : _mm256_add_epi16(*s0, p0);
            *s1 = first ? p1 : _mm256_add_epi16(*s1, p1);
            // Keep the order: compilers that do all multiplications first run out of registers.
            asm("" : "+x"(*s0), "+x"(*s1));
        }
    }

    // Moves sums to 32 bits, after a step `s` that fills 16, or the last.
    inline __attribute__((always_inline)) void widen(int s) {
        for (int r = 0; r < R; r++)
            for (int half = 0; half < 2; half++) {
                __m256i sum = _mm256_madd_epi16(narrow[r][half][0], _mm256_set1_epi16(1));
                if constexpr (planes(KIND) == 2)  // the high halves of bytes
                    sum = _mm256_add_epi32(
                        sum, _mm256_madd_epi16(narrow[r][half][1], _mm256_set1_epi16(16)));
                wide[r][half] =
                    s < narrow_steps(KIND) ? sum : _mm256_add_epi32(wide[r][half], sum);
            }
    }
};

// out[R, PANEL] = the activations from number `term` on, times a panel. A round has `STEPS` steps.
template <int R, Kind KIND, int STEPS>
void multiply_panel(const PackedMatrix& matrix, size_t panel, const Activations& activations,
                    size_t term, float* out) {
    constexpr bool NIBBLES = KIND == Kind::NIBBLES;
    const size_t columns = activations.columns, rounds = activations.rounds;
    const int8_t* a = activations.values(term);
    const float *a_scales = activations.scales(term), *a_sums = activations.sums(term);
    const uint8_t* w = matrix.values(panel);
    const size_t group_rounds = rounds / matrix.groups;
    const __m256i low = _mm256_set1_epi8(15);
    __m256 sums[R][2] = {};
    for (size_t group = 0, round = 0; group < matrix.groups; group++)
        for (const size_t end = round + group_rounds; round < end; round++) {
            RoundSums<R, KIND> products;
#pragma GCC unroll 8
            for (int s = 0; s < STEPS; s += NIBBLES ? 2 : 1, w += PANEL * STEP) {
                const __m256i w0 = _mm256_loadu_si256((const __m256i*)w);
                const __m256i w1 = _mm256_loadu_si256((const __m256i*)w + 1);
                __builtin_prefetch(w + PREFETCH);
                const int8_t* x = a + s * STEP;
                if constexpr (KIND == Kind::BITS5 || KIND == Kind::BITS6) {
                    products.add(s, 0, x, columns, w0, w1);
                } else {
                    products.add(s, 0, x, columns, _mm256_and_si256(w0, low),
                                 _mm256_and_si256(w1, low));
                    const __m256i high0 = _mm256_and_si256(_mm256_srli_epi16(w0, 4), low);
                    const __m256i high1 = _mm256_and_si256(_mm256_srli_epi16(w1, 4), low);
                    if constexpr (NIBBLES)
                        products.add(s + 1, 0, x + STEP, columns, high0, high1);
                    else
                        products.add(s, 1, x, columns, high0, high1);
                }
                const int done = s + (NIBBLES ? 2 : 1);
                if (done % narrow_steps(KIND) == 0 || done == STEPS) products.widen(done - 1);
            }
            a += STEPS * STEP;
            for (int half = 0; half < 2; half++) {
                const __m256 scale = matrix.scale(panel, group, half);
                const __m256 offset = matrix.offset(panel, group, half);
                for (int r = 0; r < R; r++) {
                    const __m256 a_scale = _mm256_broadcast_ss(a_scales + r * rounds + round);
                    const __m256 a_sum = _mm256_broadcast_ss(a_sums + r * rounds + round);
                    __m256& sum = sums[r][half];
                    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products.wide[r][half]),
                                          _mm256_mul_ps(scale, a_scale), sum);
                    sum = _mm256_fmadd_ps(offset, a_sum, sum);
                }
            }
        }
    for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++)
            _mm256_storeu_ps(out + r * PANEL + 8 * half, sums[r][half]);
}

// out[rows, matrix.rows] = activations times a panel, for rows `begin` to `end` of them.
template <Kind KIND, int STEPS>
void multiply_rows(const PackedMatrix& matrix, size_t panel, const Activations& activations,
                   size_t begin, size_t end, float* out) {
    const size_t first = panel * PANEL, width = std::min(PANEL, matrix.rows - first);
    float result[2 * PANEL];
    for (size_t row = begin; row < end; row += 2) {
        const size_t count = std::min<size_t>(2, end - row);
        if (count == 2)
            multiply_panel<2, KIND, STEPS>(matrix, panel, activations, row, result);
        else
            multiply_panel<1, KIND, STEPS>(matrix, panel, activations, row, result);
        for (size_t r = 0; r < count; r++)
            std::copy_n(result + r * PANEL, width, out + (row + r) * matrix.rows + first);
    }
    for (size_t row = begin; row < end; row++) {
        if (!activations.has_rest(row)) continue;
        multiply_panel<1, KIND, STEPS>(matrix, panel, activations, activations.rows + row, result);
        for (size_t i = 0; i < width; i++) out[row * matrix.rows + first + i] += result[i];
    }
}

template <int STEPS>
void multiply_rows(const PackedMatrix& matrix, size_t panel, const Activations& activations,
                   size_t begin, size_t end, float* out) {
    const auto run = [&](auto function) {
        function(matrix, panel, activations, begin, end, out);
    };
    switch (matrix.kind()) {
        case Kind::NIBBLES: return run(multiply_rows<Kind::NIBBLES, STEPS>);
        case Kind::BITS5: return run(multiply_rows<Kind::BITS5, STEPS>);
        case Kind::BITS6: return run(multiply_rows<Kind::BITS6, STEPS>);
        case Kind::BYTES: return run(multiply_rows<Kind::BYTES, STEPS>);
    }
}

struct Product {
    const PackedMatrix* matrix;
    float* out;  // [rows of activations, rows of the matrix]
};

// Multiplies activations x, [rows, columns], with several transposed matrices. `parallel(n, f)` calls
// f(0) to f(n - 1), in any order and in parallel.
template <class Parallel>
void multiply(const float* x, size_t rows, bool precise, const std::vector<Product>& products,
              const Parallel& parallel) {
    const size_t columns = products.front().matrix->columns;
    size_t round = MAX_ROUND;
    for (const Product& product : products) round = std::min(round, product.matrix->form.round());
    Activations activations(rows, columns, round, precise);
    const size_t row_tasks = (rows + TASK_ROWS - 1) / TASK_ROWS;
    const auto range = [&](size_t task) {
        return std::make_pair(task * TASK_ROWS, std::min(rows, (task + 1) * TASK_ROWS));
    };
    parallel(row_tasks, [&](size_t task) {
        const auto [begin, end] = range(task);
        for (size_t row = begin; row < end; row++) activations.quantize(row, x + row * columns);
    });
    std::vector<std::pair<const Product*, size_t>> panels;
    for (const Product& product : products)
        for (size_t panel = 0; panel < product.matrix->panels; panel++)
            panels.emplace_back(&product, panel);
    // Consecutive tasks share the panel, which is then in a near cache.
    parallel(panels.size() * row_tasks, [&](size_t task) {
        const auto [begin, end] = range(task % row_tasks);
        const auto [product, panel] = panels[task / row_tasks];
        const auto run = round == MAX_ROUND ? multiply_rows<MAX_ROUND / STEP>
                                            : multiply_rows<MIN_ROUND / STEP>;
        run(*product->matrix, panel, activations, begin, end, product->out);
    });
}

}  // namespace sarathi
