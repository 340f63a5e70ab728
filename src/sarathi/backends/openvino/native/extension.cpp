// The operations of an OpenVINO graph that run `Attention` and `multiply`. They run in the plugin's
// own threads, which wait for them meanwhile.
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "paged_attention.hpp"
#include "quantized_matmul.hpp"

namespace sarathi {

// Calls f(0) to f(n - 1), in tasks of one each or, with another partitioner, of several.
template <class Partitioner>
auto in_parallel(Partitioner partitioner) {
    return [partitioner](size_t n, const auto& f) {
        if (n > 1)
            tbb::parallel_for(size_t(0), n, f, partitioner);
        else if (n == 1)
            f(size_t(0));
    };
}

inline const float* floats(const ov::Tensor& x) { return x.data<const float>(); }

// Inputs: queries, keys and values of the new tokens, f32 [tokens, heads * dim]; the key and the
// value cache, u8 [blocks, bytes of a block]; and the arrays of a step, i32: the number of
// sequences, past_lens, query_starts, block_starts and block_ids, joined since each input costs
// time in each layer. The output has the shape of the queries. As in the plugin's own operation,
// the caches are inputs that are written to: the memory is the caller's.
class PagedAttention : public ov::op::Op {
public:
    OPENVINO_OP("PagedAttention", "sarathi");

    PagedAttention() = default;
    PagedAttention(const ov::OutputVector& inputs, int64_t heads, int64_t kv_heads, int64_t window,
                   float scale)
        : Op(inputs), heads_(heads), kv_heads_(kv_heads), window_(window), scale_(scale) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        set_output_type(0, ov::element::f32, get_input_partial_shape(0));
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<PagedAttention>(inputs, heads_, kv_heads_, window_, scale_);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("heads", heads_);
        visitor.on_attribute("kv_heads", kv_heads_);
        visitor.on_attribute("window", window_);
        visitor.on_attribute("scale", scale_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        outputs[0].set_shape(inputs[0].get_shape());
        const size_t dim = inputs[0].get_shape()[1] / heads_;
        const Heads heads{size_t(heads_), size_t(kv_heads_), dim, scale_, int(window_)};
        const int32_t* step = inputs[5].data<const int32_t>();
        const int sequences = step[0];
        const int32_t *past_lens = step + 1, *query_starts = past_lens + sequences;
        const int32_t *block_starts = query_starts + sequences + 1;
        const int32_t *block_ids = block_starts + sequences + 1;
        const Batch batch{query_starts, past_lens, block_ids, block_starts, sequences};
        const Cache cache{bytes(inputs[3]), bytes(inputs[4]), size_t(kv_heads_), dim};
        Attention attention(heads, batch, cache, floats(inputs[0]), floats(inputs[1]),
                            floats(inputs[2]), outputs[0].data<float>());
        attention.run(tbb::this_task_arena::max_concurrency(),
                      in_parallel(tbb::simple_partitioner()));
        return true;
    }

private:
    static uint8_t* bytes(const ov::Tensor& x) {
        return const_cast<uint8_t*>(x.data<const uint8_t>());
    }

    int64_t heads_ = 1, kv_heads_ = 1, window_ = 0;
    float scale_ = 1;
};

// The input are activations, f32 [rows, columns]; the outputs their products with each matrix. Those
// are no inputs, since each input costs time: `matrices` are addresses of what `sarathi_pack` made.
class QuantizedMatmul : public ov::op::Op {
public:
    OPENVINO_OP("QuantizedMatmul", "sarathi");

    QuantizedMatmul() = default;
    QuantizedMatmul(const ov::OutputVector& inputs, std::vector<int64_t> matrices, bool precise)
        : Op(inputs), matrices_(std::move(matrices)), precise_(precise) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        const ov::Dimension rows = get_input_partial_shape(0)[0];
        for (size_t i = 0; i < matrices_.size(); i++)
            set_output_type(i, ov::element::f32, {rows, int64_t(matrix(i)->rows)});
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<QuantizedMatmul>(inputs, matrices_, precise_);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("matrices", matrices_);
        visitor.on_attribute("precise", precise_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const size_t rows = inputs[0].get_shape()[0];
        std::vector<Product> products;
        for (size_t i = 0; i < outputs.size(); i++) {
            outputs[i].set_shape({rows, matrix(i)->rows});
            products.push_back({matrix(i), outputs[i].data<float>()});
        }
        multiply(floats(inputs[0]), rows, precise_, products, in_parallel(tbb::auto_partitioner()));
        return true;
    }

private:
    const PackedMatrix* matrix(size_t i) const {
        return reinterpret_cast<const PackedMatrix*>(matrices_[i]);
    }

    std::vector<int64_t> matrices_;
    bool precise_ = false;
};

}  // namespace sarathi

// Returns a packed copy of a matrix, or null if memory is short. Either `zeros` or `byte_zeros` are
// its zero points, or neither.
extern "C" sarathi::PackedMatrix* sarathi_pack(size_t bits, size_t group, size_t rows,
                                               size_t columns, const uint8_t* values,
                                               const float* scales, const float* zeros,
                                               const uint8_t* byte_zeros) noexcept try {
    const auto pack = [&](auto zeros) {
        return new sarathi::PackedMatrix({bits, group}, rows, columns, values, scales, zeros,
                                         sarathi::in_parallel(tbb::auto_partitioner()));
    };
    return byte_zeros ? pack(byte_zeros) : pack(zeros);
} catch (const std::exception&) {
    return nullptr;
}

extern "C" void sarathi_free(const sarathi::PackedMatrix* matrix) noexcept { delete matrix; }

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>(
    {std::make_shared<ov::OpExtension<sarathi::PagedAttention>>(),
     std::make_shared<ov::OpExtension<sarathi::QuantizedMatmul>>()}))
