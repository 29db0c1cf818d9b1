#!/usr/bin/env bash
# Runs the given command once in each setting that this machine can run, and says which it cannot.
#
# Settings: vectors of other x86 processors, for the C kernels and for torch's own code; the tiles of
# Intel's AMX, emulated; the kernels under the undefined-behaviour sanitizer. aarch64 needs no
# setting: tests/native/test_aarch64.py emulates it wherever aarch64-linux-gnu-gcc and qemu-aarch64 are
# installed.
set -euo pipefail
export PFL_LM_NATIVE=required UBSAN_OPTIONS=print_stacktrace=1

in_setting() {
    local setting=$1
    shift
    echo "── $setting"
    env "$setting" "$@"
}

has() { # FLAG: of the processor
    grep -qw "$1" /proc/cpuinfo
}

for command in aarch64-linux-gnu-gcc qemu-aarch64; do
    command -v "$command" >/dev/null || echo "── no aarch64: $command is not installed"
done
if [ "$(uname -m)" = x86_64 ]; then
    in_setting PFL_LM_CFLAGS=-march=x86-64-v2 "$@"
    in_setting ATEN_CPU_CAPABILITY=default "$@"
    if has avx2; then
        in_setting PFL_LM_CFLAGS=-march=x86-64-v3 "$@"
        in_setting ATEN_CPU_CAPABILITY=avx2 "$@"
    else
        echo "── no x86-64-v3: this processor has no AVX2"
    fi
    if has avx512f && has avx512bw && has avx512dq && has avx512vl; then
        in_setting PFL_LM_CFLAGS=-march=x86-64-v4 "$@"
        in_setting ATEN_CPU_CAPABILITY=avx512 "$@"
    else
        echo "── no x86-64-v4: this processor has no AVX-512"
    fi
    in_setting "PFL_LM_CFLAGS=-O1 -DLANES=16 -include $PWD/tests/native/emulated_tiles.h" "$@"
else
    echo "── no x86-64-v2, v3, v4: this processor is $(uname -m)"
fi
in_setting "PFL_LM_CFLAGS=-fsanitize=undefined -fno-sanitize-recover=undefined" "$@"
