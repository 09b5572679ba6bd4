// The plan of a call: which jets go through the layers together.
#pragma once

#include "core/jet_batch.h"
#include "core/types.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

// Jets that go through the layers together: their constituents stand in rows row … row + tokens − 1 of the batch's
// buffers, followed by zeros or other finite values up to row + rows.
struct Slice {
    int64_t jet, jets, row, rows, tokens;
    bool first, last;  // of its group
};

// Gradients of the weights are summed over the slices of a group, then over groups, in order: the same bits on any
// number of threads.
constexpr int64_t kGroups = 16;
constexpr int64_t kSliceTokens = 288;  // of which a layer's activations fit the second-level cache

// The batch in slices.
struct Slicing {
    Slice* slices;         // [Extent::slices]
    int64_t* first_row;    // [jets], of the batch's buffers
    int64_t* counts;       // [jets], constituents
    int64_t* group_begin;  // [kGroups + 1], the first slice of each group
};

// Sizes that buffers follow from. tokens: constituents; slice_rows, slice_jets: the most of a slice.
struct Extent {
    int64_t jets, slices, tokens, rows, slice_rows, slice_jets, longest_jet;
};

// A jet of the batch in its view.
KDFAST_INLINE int64_t position(const JetBatch& batch, int64_t jet) {
    return batch.jets ? batch.jets[jet] : batch.first + jet;
}

// Slices of whole jets, whose rows are multiples of `granule`. to: filled; null: only counts.
KDFAST_INLINE Extent slice_jets(const JetBatch& batch, int64_t granule, const Slicing* to) {
    Extent e{};
    e.jets = batch.num_jets;
    for (int64_t group = 0; group < kGroups; ++group) {
        const int64_t end = batch.num_jets * (group + 1) / kGroups;
        if (to) to->group_begin[group] = e.slices;
        bool first = true;
        for (int64_t jet = batch.num_jets * group / kGroups; jet < end;) {
            Slice slice{jet, 0, e.rows, 0, 0, first, false};
            do {
                const int64_t at = position(batch, jet), n = batch.offsets[at + 1] - batch.offsets[at];
                if (slice.jets > 0 && slice.tokens + n > kSliceTokens) break;
                if (to) {
                    to->counts[jet] = n;
                    to->first_row[jet] = slice.row + slice.tokens;
                }
                e.longest_jet = n > e.longest_jet ? n : e.longest_jet;
                slice.tokens += n;
                ++slice.jets;
                ++jet;
            } while (jet < end);
            slice.rows = round_up(slice.tokens, granule);
            slice.last = jet == end;
            e.tokens += slice.tokens;
            e.rows += slice.rows;
            e.slice_rows = slice.rows > e.slice_rows ? slice.rows : e.slice_rows;
            e.slice_jets = slice.jets > e.slice_jets ? slice.jets : e.slice_jets;
            if (to) to->slices[e.slices] = slice;
            ++e.slices;
            first = false;
        }
    }
    if (to) to->group_begin[kGroups] = e.slices;
    return e;
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
