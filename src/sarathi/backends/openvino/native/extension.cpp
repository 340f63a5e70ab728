// The operation of an OpenVINO graph that runs `Attention`.
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "paged_attention.hpp"

namespace sarathi {

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
        // In the plugin's own threads, which wait for this operation meanwhile.
        attention.run(tbb::this_task_arena::max_concurrency(), [](size_t n, const auto& f) {
            if (n > 1)
                tbb::parallel_for(size_t(0), n, f, tbb::simple_partitioner());
            else if (n == 1)
                f(size_t(0));
        });
        return true;
    }

private:
    static const float* floats(const ov::Tensor& x) { return x.data<const float>(); }
    static uint8_t* bytes(const ov::Tensor& x) {
        return const_cast<uint8_t*>(x.data<const uint8_t>());
    }

    int64_t heads_ = 1, kv_heads_ = 1, window_ = 0;
    float scale_ = 1;
};

}  // namespace sarathi

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>(
    {std::make_shared<ov::OpExtension<sarathi::PagedAttention>>()}))
