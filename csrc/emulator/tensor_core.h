// Twins of the warp-wide matrix instructions and of cp.async. Fragments are laid out as in the PTX manual
// (mma.m16n8k16, mma.m16n8k8, ldmatrix, movmatrix); tests/emulator holds them to an independent statement of it.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>

#include "core/types.h"
#include "emulator/machine.h"
#include "emulator/shared_memory.h"

namespace kdfast::emulator {

constexpr unsigned kWholeWarp = 0xffffffffu;

struct MmaOperand {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
};

// As tensor cores round their sums (Fasi et al., PeerJ Computer Science 7:e330, 2021).
inline float towards_zero(double x) {
    const float rounded = static_cast<float>(x);
    return std::fabs(static_cast<double>(rounded)) > std::fabs(x) ? std::nextafter(rounded, 0.0f) : rounded;
}

// D += A B for A [16, K] and B [K, 8]: a register holds kPerRegister neighbours along K; element(register, e) takes
// one.
template <int K, class Unpack>
void multiply(MmaOperand** lanes, Unpack element) {
    constexpr int kPerRegister = K / 8 == 2 ? 2 : 1;
    float a[16][K], b[K][8];
    for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / 4, column = lane % 4 * kPerRegister;
        for (int e = 0; e < kPerRegister; ++e) {
            for (int r = 0; r < 4; ++r)
                a[group + r % 2 * 8][column + e + r / 2 * (K / 2)] = element(lanes[lane]->a[r], e);
            for (int r = 0; r < 2; ++r) b[column + e + r * (K / 2)][group] = element(lanes[lane]->b[r], e);
        }
    }
    for (int i = 0; i < 16; ++i) {
        double sums[8];
        for (int j = 0; j < 8; ++j) sums[j] = static_cast<double>(lanes[i % 8 * 4 + j / 2]->d[i / 8 * 2 + j % 2]);
        for (int k = 0; k < K; ++k)
            for (int j = 0; j < 8; ++j) sums[j] += static_cast<double>(a[i][k]) * static_cast<double>(b[k][j]);
        for (int j = 0; j < 8; ++j) lanes[i % 8 * 4 + j / 2]->d[i / 8 * 2 + j % 2] = towards_zero(sums[j]);
    }
}

inline void need_capability(int least, const char* what, const Site& site) {
    if (settings.compute_capability < least)
        fail(std::string(what) + " needs compute capability " + std::to_string(least / 10) + "." +
                 std::to_string(least % 10),
             site);
}

}  // namespace kdfast::emulator

namespace kdfast::gpu {

template <class T>
inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                        emulator::Site site = emulator::Site::current()) {
    emulator::need_capability(80, "mma.m16n8k16", site);
    emulator::MmaOperand operand{d, a, {b0, b1}};
    emulator::collective(
        emulator::Wait::mma, emulator::kWholeWarp, operand,
        [](emulator::MmaOperand** lanes) {
            emulator::multiply<16>(
                lanes, [](uint32_t pair, int e) { return to_float(T{static_cast<uint16_t>(pair >> 16 * e)}); });
        },
        site);
}

inline uint32_t to_tf32(float x) {  // to nearest, ties away from zero
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

inline void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                            emulator::Site site = emulator::Site::current()) {
    emulator::need_capability(80, "mma.m16n8k8 of tf32", site);
    emulator::MmaOperand operand{d, a, {b0, b1}};
    emulator::collective(
        emulator::Wait::mma, emulator::kWholeWarp, operand,
        [](emulator::MmaOperand** lanes) {  // the low 13 bits are not read
            emulator::multiply<8>(lanes, [](uint32_t x, int) { return std::bit_cast<float>(x & ~0x1fffu); });
        },
        site);
}

// kMatrices 8 × 8 matrices of 16-bit elements; lane 8 m + i holds the address of row i of matrix m.
template <int kMatrices, bool kTranspose = false, class T>
inline void ldmatrix(uint32_t (&registers)[kMatrices], emulator::SharedPointer<T> row,
                     emulator::Site site = emulator::Site::current()) {
    static_assert(sizeof(T) == 2 && (kMatrices == 1 || kMatrices == 2 || kMatrices == 4));
    struct Operand {
        uint32_t* out;
        uint16_t row[8];
    } operand{registers, {}};
    if (emulator::thread->lane < 8 * kMatrices) {  // the other lanes' addresses are not read
        T* const address = row.at(0, 8, site);
        emulator::check_aligned(address, 16, site);
        emulator::note_read(address, 16, site);
        emulator::count_access(emulator::Access::load, address, 16, 16, site);  // rows of a matrix: a quarter of a warp
        std::memcpy(operand.row, address, 16);
    }
    emulator::collective(
        emulator::Wait::ldmatrix, emulator::kWholeWarp, operand,
        [](Operand** lanes) {
            for (int lane = 0; lane < 32; ++lane)
                for (int m = 0; m < kMatrices; ++m) {
                    uint32_t pair = 0;
                    for (int e = 0; e < 2; ++e) {
                        const int i = lane / 4, j = lane % 4 * 2 + e;
                        pair |= uint32_t{lanes[8 * m + (kTranspose ? j : i)]->row[kTranspose ? i : j]} << 16 * e;
                    }
                    lanes[lane]->out[m] = pair;
                }
        },
        site);
}

// The transpose of an 8 × 8 matrix of 16-bit elements that the warp holds as ldmatrix gives it.
inline uint32_t movmatrix_transpose(uint32_t pair, emulator::Site site = emulator::Site::current()) {
    struct Operand {
        uint32_t in, out;
    } operand{pair, 0};
    emulator::collective(
        emulator::Wait::movmatrix, emulator::kWholeWarp, operand,
        [](Operand** lanes) {
            for (int lane = 0; lane < 32; ++lane)
                for (int e = 0; e < 2; ++e) {
                    const int i = lane / 4, j = lane % 4 * 2 + e;
                    lanes[lane]->out |= (lanes[j * 4 + i / 2]->in >> 16 * (i % 2) & 0xffffu) << 16 * e;
                }
        },
        site);
    return operand.out;
}

// kBytes from global to shared memory, the first `valid` of them read and zeros behind; the data move at the wait.
template <int kBytes, class T>
inline void cp_async(emulator::SharedPointer<T> destination, const T* source, int valid = kBytes,
                     emulator::Site site = emulator::Site::current()) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
    T* const address = destination.at(0, kBytes / sizeof(T), site);
    emulator::check_aligned(address, kBytes, site);
    emulator::check_aligned(source, kBytes, site);
    emulator::note_write(address, kBytes, site, emulator::Write::copy);
    std::memset(static_cast<void*>(address), 0xff, kBytes);
    emulator::thread->open.push_back({address, source, kBytes, valid, site});
}

inline void cp_async_commit() {
    emulator::thread->groups.push_back(std::move(emulator::thread->open));
    emulator::thread->open.clear();
}

// Waits until at most kPending of the thread's committed groups are under way. Other threads see the data behind a
// barrier.
template <int kPending>
inline void cp_async_wait(emulator::Site = emulator::Site::current()) {
    auto& groups = emulator::thread->groups;
    while (groups.size() > static_cast<size_t>(kPending)) {
        for (const emulator::Copy& copy : groups.front()) {
            emulator::note_write(copy.destination, static_cast<size_t>(copy.bytes), copy.site);
            std::memset(copy.destination, 0, static_cast<size_t>(copy.bytes));
            std::memcpy(copy.destination, copy.source, static_cast<size_t>(copy.valid));
        }
        groups.erase(groups.begin());
    }
}

}  // namespace kdfast::gpu
