#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Set up this checkout for `make run`, `make check`, `make test` or `make bench` (the argument): system packages, .venv, guest kernel.
#
# Theory of operation: every need is probed by what it provides (a program, a header), not by package name, and only what
# is missing is installed. As root apt-get installs it, without starting any service. Not as root nothing outside the
# checkout is touched: the one line to run as root is printed and we go on with what there is. Packages that are only a
# file or two for us (kernel image, prometheus) are never installed but unpacked below build/.
set -euo pipefail
cd "$(dirname "$0")/.."
goal=${1:-run}
top=$PWD
unpacked=$top/build/unpacked
export PATH="$top/.venv/bin:$unpacked/usr/bin:$unpacked/bin:$PATH:/usr/sbin:/sbin"

say() { printf 'setup: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# The newest Python from 3.11 on; $PYTHON overrides.
find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
}

# Packages that provide what this goal needs and this machine lacks.
missing_packages() {
  local python version
  python=$(find_python)
  if [ -z "$python" ]; then
    if apt-cache show python3.11 >/dev/null 2>&1; then echo python3.11 python3.11-venv python3.11-dev; else echo python3 python3-venv python3-dev; fi
  else
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import venv, ensurepip' 2>/dev/null || echo "python$version-venv"
    [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || echo "python$version-dev"
  fi
  [ "$goal" = bench ] && chart_in_venv
  [ "$goal" = check ] && return
  have g++ || echo g++
  have cmake || echo cmake
  have ninja || echo ninja-build
  if [ "$goal" = bench ]; then
    [ -x /usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk ] || echo openvswitch-switch-dpdk
    have dpdk-testpmd || echo dpdk-dev
  fi
  [ "$goal" = test ] || return 0
  have ccache || echo ccache
  have ip || echo iproute2
  have dpdk-testpmd || echo dpdk-dev
  have qemu-system-x86_64 || echo qemu-system-x86
  have busybox || echo busybox-static
  have iperf3 || echo iperf3
  have ethtool || echo ethtool
  have tshark || echo tshark
  have tcpdump || echo tcpdump
  have openssl || echo openssl
  have curl || echo curl
  [ -e /usr/include/infiniband/verbs.h ] || echo libibverbs-dev
  [ -d /usr/lib/python3/dist-packages/pyverbs ] || echo python3-pyverbs ibverbs-providers
  [ -e /usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk ] || echo openvswitch-switch-dpdk
  have clang++-14 || echo clang-14
  compgen -G '/usr/lib/*/clang/14*/lib/*/libclang_rt.fuzzer*' >/dev/null ||
    compgen -G '/usr/lib/llvm-14/lib/clang/14*/lib/*/libclang_rt.fuzzer*' >/dev/null || echo libclang-rt-14-dev
  [ -e /usr/include/doctest/doctest.h ] || [ -e "$unpacked/usr/include/doctest/doctest.h" ] || echo doctest-dev
}

# Install without starting services: a policy file that says no, unless the machine has a policy of its own.
apt_install() {
  local policy=/usr/sbin/policy-rc.d ours=
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    ours=1
  fi
  local status=0
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -q --no-install-recommends "$@" >build/apt.log 2>&1 || {
    say "apt-get update, then once more"
    { apt-get update -q && apt-get install -y -q --no-install-recommends "$@"; } >>build/apt.log 2>&1 || status=$?
  }
  [ -z "$ours" ] || rm -f $policy
  [ $status = 0 ] || { tail -n 15 build/apt.log >&2; say "apt-get could not install: $*"; }
  return $status
}

# Fetch a package and unpack it below build/unpacked; nothing is installed, no root needed.
unpack() {
  local folder=build/download
  mkdir -p $folder "$unpacked"
  chmod 755 $folder
  have apt-get && have dpkg || return 1
  (cd $folder && apt-get download -q "$1" >>../apt.log 2>&1) ||
    { [ "$(id -u)" = 0 ] && apt-get update -q >>build/apt.log 2>&1 && (cd $folder && apt-get download -q "$1" >>../apt.log 2>&1); } ||
    return 1
  dpkg -x "$(ls -t $folder/"$1"_*.deb | head -n 1)" "$unpacked"
  rm -f $folder/"$1"_*.deb
}

system() {
  mkdir -p build
  local missing
  mapfile -t missing < <(missing_packages | tr ' ' '\n')
  if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && have apt-get; then
      say "installing ${missing[*]}"
      # Together is faster; apart, one package that this release lacks does not cost the others.
      apt_install "${missing[@]}" || for package in "${missing[@]}"; do apt_install "$package" || true; done
    else
      say "not root, so nothing is installed. For everything, run:  apt-get install ${missing[*]}"
    fi
  fi
}

# What the tests need and nobody installs.
peers() {
  [ -e /usr/include/doctest/doctest.h ] || [ -e "$unpacked/usr/include/doctest/doctest.h" ] || unpack doctest-dev || true
  have busybox || unpack busybox-static || true
  have promtool || { say "fetching prometheus (unpacked below build/, not installed)" && unpack prometheus; } ||
    say "no promtool: tests of rules and scrapes are left out"
  kernel virtio_net linux-image-cloud-amd64 linux-image-virtual linux-image-amd64 ||
    say "no guest kernel: tests with QEMU guests are left out"
  kernel 9pnet_virtio linux-image-amd64 linux-image-generic ||
    say "no kernel for test machines: tests of vhost-net, vDPA and rdma_rxe are left out"
  tools/kernel-modules.sh || say "no vDPA modules for test machines: their tests are left out"
}

# A distribution kernel with a module ($1) that the tests need, from the first of these packages that can be had.
kernel() {
  local meta image module=$1
  shift
  compgen -G "$unpacked/lib/modules/*" >/dev/null && [ -n "$(find "$unpacked/lib/modules" -name "$module.ko*" -print -quit)" ] && return
  have apt-cache || return 1
  for meta; do
    image=$(apt-cache depends --no-recommends --no-suggests "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [ -n "$image" ] || continue
    say "fetching $image (unpacked below build/, not installed)"
    unpack "$image" || continue
    # Ubuntu keeps the modules in packages of their own.
    [ -d "$unpacked/lib/modules/${image#linux-image-}" ] || {
      unpack "${image/linux-image-/linux-modules-}" || continue
      unpack "${image/linux-image-/linux-modules-extra-}" || true
    }
    return 0
  done
  return 1
}

digest() { find "$@" -type f ! -name '*.so' ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum; }

# .venv with the project inside (editable: Python files are used where they stand; C++ is built into .venv).
venv() {
  local python stamp now extra=
  python=$(find_python)
  [ -n "$python" ] || { say "no Python from 3.11 on: apt-get install python3 python3-venv python3-dev"; exit 1; }
  if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    say "creating .venv ($("$python" --version))"
    rm -rf .venv
    "$python" -m venv .venv || { say "venv failed: apt-get install python3-venv"; exit 1; }
  fi
  [ "$goal" = run ] || [ "$goal" = bench ] || tools_in_venv
  [ "$goal" = check ] && return
  have g++ || have "${CXX:-c++}" || { say "no C++ compiler: apt-get install g++"; exit 1; }
  [ "$goal" = test ] && extra='[test]'
  now="$extra $(digest core_cpp CMakeLists.txt pyproject.toml) $(find switch -name '*.py' | sort | sha256sum)"
  stamp=.venv/installed
  if [ "$(cat $stamp 2>/dev/null)" != "$now" ] && [ "$(cat $stamp 2>/dev/null)" != "[test]${now#"$extra"}" ]; then
    say "building and installing the project into .venv"
    builders_in_venv
    # Without isolation paths stay the same from build to build, so that only what changed is compiled again.
    .venv/bin/pip install -q --disable-pip-version-check --no-build-isolation -e ".$extra" >build/pip.log 2>&1 ||
      { tail -n 40 build/pip.log >&2; exit 1; }
    printf '%s' "$now" >$stamp
  fi
  [ "$goal" != test ] || link_pyverbs
}

# pyverbs belongs to the rdma-core of the distribution and to one minor version of Python; .venv sees it through a link.
link_pyverbs() {
  local from=/usr/lib/python3/dist-packages/pyverbs site suffix
  site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  suffix=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
  compgen -G "$from/device*$suffix" >/dev/null || return 0
  ln -sfn "$from" "$site/pyverbs"
}

# What pyproject.toml builds with; cmake and ninja too where the system has none and we may not install them.
builders_in_venv() {
  local wanted stamp=.venv/builders
  wanted=$(.venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")')
  have cmake || wanted="$wanted"$'\ncmake'
  have ninja || wanted="$wanted"$'\nninja'
  [ "$(cat $stamp 2>/dev/null)" = "$wanted" ] && return
  printf '%s\n' "$wanted" >build/builders.txt
  .venv/bin/pip install -q --disable-pip-version-check -r build/builders.txt >build/pip.log 2>&1 || { tail -n 20 build/pip.log >&2; exit 1; }
  printf '%s' "$wanted" >$stamp
}

# What draws the chart of `make bench`; without it there is none.
chart_in_venv() {
  .venv/bin/python -c 'import matplotlib' 2>/dev/null && return
  .venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"], sep="\n")' >build/bench.txt
  .venv/bin/pip install -q --disable-pip-version-check -r build/bench.txt >build/pip.log 2>&1 || say "no matplotlib: no chart"
}

# Checkers at pinned versions.
tools_in_venv() {
  local wanted stamp=.venv/tools
  wanted=$(cat tools/lint-requirements.txt)
  [ "$(cat $stamp 2>/dev/null)" = "$wanted" ] && return
  say "installing checkers into .venv"
  printf '%s\n' "$wanted" >build/tools.txt
  # mypy reads the types of what the code imports, so the project's own dependencies come along.
  .venv/bin/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["test"], sep="\n")' >>build/tools.txt
  .venv/bin/pip install -q --disable-pip-version-check -r build/tools.txt >build/pip.log 2>&1 || { tail -n 20 build/pip.log >&2; exit 1; }
  printf '%s' "$wanted" >$stamp
}

system
if [ "$goal" = test ]; then
  # Beside what follows: it is downloads and what one thread unpacks.
  peers &
  trap wait EXIT
  trap 'kill $! 2>/dev/null; exit 130' INT TERM
fi
venv
# The machines that tests emulate share these files and cannot keep what they compile; Python may be told to keep nothing.
[ "$goal" = check ] || .venv/bin/python -m compileall -q switch tests
