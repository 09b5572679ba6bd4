#include "emulator/shared_memory.h"

#include <algorithm>

namespace kdfast::emulator {
namespace {

constexpr size_t kUnit = 2;
constexpr int16_t kSeveralWarps = -1;

// The last accesses to one unit. An epoch is that of the block (0: never), a stamp the warp's number of barriers then.
struct Cell {
    uint32_t write_epoch, write_stamp, read_epoch, read_stamp, read_lanes;
    int16_t writer, read_warp;
    Write how;
    bool plain_read;  // some of the reads were no atomics
};

struct Array {
    const void* key;
    size_t offset;
};

alignas(128) char memory[kMaxShared];
Cell cells[kMaxShared / kUnit];
std::vector<Array> arrays;
size_t used, dynamic_size;

Cell* cells_of(const void* address) {
    return cells + static_cast<size_t>(static_cast<const char*>(address) - memory) / kUnit;
}

// Whether the running thread comes after what `lane` of its own warp did at `stamp`.
bool comes_after(const Warp& warp, int lane, uint32_t stamp) {
    return lane == thread->lane || warp.knows[thread->lane][lane] > stamp;
}

std::string who(int number) { return "thread " + std::to_string(number); }

// The last write to the unit is ordered before the running thread.
void check_after_write(const Cell& cell, const Warp& warp, const char* access, const Site& site) {
    if (cell.write_epoch != block.epoch || cell.writer == thread->number) return;
    if (cell.writer / 32 == thread->warp && comes_after(warp, cell.writer % 32, cell.write_stamp)) return;
    fail(std::string("race: ") + access + " what " + who(cell.writer) + " wrote, with no barrier between", site);
}

// So are all reads of it.
void check_after_reads(const Cell& cell, const Warp& warp, const Site& site) {
    if (cell.read_epoch != block.epoch) return;
    if (cell.read_warp != thread->warp)
        fail("race: writes over what " +
                 (cell.read_warp == kSeveralWarps ? "several warps" : "warp " + std::to_string(cell.read_warp)) +
                 " read, with no barrier between",
             site);
    for (int lane = 0; lane < 32; ++lane)
        if (cell.read_lanes >> lane & 1 && !comes_after(warp, lane, cell.read_stamp))
            fail("race: writes over what " + who(thread->warp * 32 + lane) + " read, with no barrier between", site);
}

// Whom a later write must come after: all who have read since the last barrier that they share with those who follow.
void add_reader(Cell& cell, const Warp& warp, bool plain) {
    if (cell.read_epoch != block.epoch) {
        cell.read_epoch = block.epoch;
        cell.read_warp = static_cast<int16_t>(thread->warp);
        cell.read_lanes = 0;
    } else if (cell.read_warp != thread->warp) {
        cell.read_warp = kSeveralWarps;
    }
    if (cell.read_stamp != warp.barriers) {
        for (int lane = 0; lane < 32; ++lane)
            if (cell.read_lanes >> lane & 1 && comes_after(warp, lane, cell.read_stamp))
                cell.read_lanes &= ~(1u << lane);
        cell.read_stamp = warp.barriers;
    }
    cell.plain_read = plain || (cell.plain_read && cell.read_lanes != 0);
    cell.read_lanes |= 1u << thread->lane;
}

}  // namespace

size_t shared_limit(int compute_capability) {
    switch (compute_capability) {
        case 75:
            return 64 << 10;
        case 80:
            return 163 << 10;
        case 86:
        case 89:
        case 120:
            return 99 << 10;
        case 90:
        case 100:
            return 227 << 10;
        default:
            throw Error("compute capability " + std::to_string(compute_capability) +
                        ": its limit of shared memory is not known here");
    }
}

void check_dynamic_shared(size_t dynamic, const Site& site) {
    const int capability = settings.compute_capability;
    if (dynamic > shared_limit(capability))
        fail("launch: " + std::to_string(dynamic) + " bytes of dynamic shared memory, over the " +
                 std::to_string(shared_limit(capability)) + " of compute capability " + std::to_string(capability),
             site);
}

void start_shared_memory(size_t dynamic) {
    std::memset(memory, 0xff, std::max(used, dynamic));  // NaN
    arrays.clear();
    dynamic_size = dynamic;
    used = (dynamic + 15) / 16 * 16;
}

void* dynamic_shared_memory(size_t offset, size_t bytes, const Site& site) {
    if (offset % 16 != 0) fail("dynamic shared array does not begin at a multiple of 16 bytes", site);
    if (offset + bytes > dynamic_size)
        fail("dynamic shared array ends at byte " + std::to_string(offset + bytes) + " of the launch's " +
                 std::to_string(dynamic_size),
             site);
    return memory + offset;
}

void* static_shared_memory(const void* key, size_t bytes, const Site& site) {
    for (const Array& a : arrays)
        if (a.key == key) return memory + a.offset;
    const size_t offset = used;
    const size_t end = (offset + bytes + 15) / 16 * 16, all_static = end - (dynamic_size + 15) / 16 * 16;
    const bool asked = dynamic_size > kSharedUnasked;
    const int capability = settings.compute_capability;
    const std::string in_all = std::to_string(all_static) + " static and " + std::to_string(dynamic_size) +
                               " dynamic bytes of shared memory, ";
    if (asked && end > shared_limit(capability))
        fail(in_all + "over the " + std::to_string(shared_limit(capability)) + " of compute capability " +
                 std::to_string(capability),
             site);
    if (asked ? all_static > kSharedUnasked : end > kSharedUnasked)
        fail(in_all + "over the " + std::to_string(kSharedUnasked) +
                 (asked ? " of static arrays" : " that any launch may have unasked"),
             site);
    used = end;
    arrays.push_back({key, offset});
    return memory + offset;
}

void fail_bounds(int64_t index, int64_t count, const Site& site) {
    fail("shared array index " + std::to_string(index) + " outside of [0, " + std::to_string(count) + ")", site);
}

void note_read(const void* address, size_t bytes, const Site& site) {
    see(site);
    maybe_give_way();
    const Warp& warp = block.warps[static_cast<size_t>(thread->warp)];
    Cell* const first = cells_of(address);
    for (Cell* cell = first; cell < first + (bytes + kUnit - 1) / kUnit; ++cell) {
        if (cell->write_epoch < block.first_epoch) fail("reads uninitialised shared memory", site);
        if (cell->how == Write::copy) fail("reads what a cp.async brings before it was waited for", site);
        check_after_write(*cell, warp, "reads", site);
        add_reader(*cell, warp, true);
    }
}

void note_write(const void* address, size_t bytes, const Site& site, Write how) {
    see(site);
    maybe_give_way();
    const Warp& warp = block.warps[static_cast<size_t>(thread->warp)];
    Cell* const first = cells_of(address);
    for (Cell* cell = first; cell < first + (bytes + kUnit - 1) / kUnit; ++cell) {
        if (how == Write::atomic && cell->write_epoch < block.first_epoch)
            fail("atomic on uninitialised shared memory", site);
        const bool both_atomic = how == Write::atomic && cell->how == Write::atomic;
        if (!both_atomic) check_after_write(*cell, warp, "writes over", site);
        if (!both_atomic || cell->plain_read) check_after_reads(*cell, warp, site);
        if (how == Write::atomic) add_reader(*cell, warp, false);
        cell->write_epoch = block.epoch;
        cell->write_stamp = warp.barriers;
        cell->writer = static_cast<int16_t>(thread->number);
        cell->how = how;
    }
}

void note_warp_barrier(Warp& warp, unsigned mask) {
    const uint32_t now = ++warp.barriers;
    uint32_t joined[32] = {};
    for (int a = 0; a < 32; ++a)
        if (mask >> a & 1)
            for (int b = 0; b < 32; ++b) joined[b] = std::max(joined[b], warp.knows[a][b]);
    for (int b = 0; b < 32; ++b)
        if (mask >> b & 1) joined[b] = now;
    for (int a = 0; a < 32; ++a)
        if (mask >> a & 1) std::copy(joined, joined + 32, warp.knows[a]);
}

}  // namespace kdfast::emulator
