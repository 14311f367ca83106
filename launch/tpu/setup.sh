#!/usr/bin/env bash
# Sets up one TPU VM: source, a Python of its own, jax[tpu], the bucket as a folder, data.
#
#   bash setup.sh BUNDLE BUCKET [DATASET...]
#
# BUNDLE is a git bundle beside this script, cloned into ~/nin_jax; packages go into ~/nin_venv;
# BUCKET is mounted at /mnt/nin; each DATASET is prepared on the VM's own disk. Rerun it at any time,
# and after a restart of the VM, which loses the mount. `tpu.sh setup` runs it on every worker.
set -euo pipefail

bundle=$1 bucket=$2
shift 2
source=$HOME/nin_jax venv=$HOME/nin_venv mount=${NIN_MOUNT:-/mnt/nin}

fail() {
    echo "error: $1" >&2
    exit 1
}

# A fresh VM upgrades itself and holds apt's lock meanwhile; package mirrors fail now and then.
retry() {
    local attempt
    for attempt in 1 2 3; do
        "$@" && return
        echo "attempt $attempt of 3 failed: $*" >&2
        sleep "${NIN_RETRY_SECONDS:-20}"
    done
    echo "error: '$*' failed three times" >&2
    return 1
}

apt_install() {
    retry sudo apt-get -o DPkg::Lock::Timeout=300 update -qq
    retry sudo apt-get -o DPkg::Lock::Timeout=300 install -qq -y "$@"
}

get_source() {
    command -v git >/dev/null || apt_install git
    if [ ! -d "$source/.git" ]; then
        git -c advice.detachedHead=false clone -q "$bundle" "$source"
    else
        git -C "$source" fetch -q "$(realpath "$bundle")" HEAD
        git -C "$source" reset -q --hard FETCH_HEAD
    fi
    echo "source: $(git -C "$source" rev-parse HEAD)"
}

# The images have Python 3.10, the project needs 3.11 to 3.13: uv installs one.
get_python() {
    python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip
    retry python3 -m pip install -q --user --upgrade uv
    [ -x "$venv/bin/python" ] || retry python3 -m uv venv -q --clear --python ">=3.11,<3.14" "$venv"
    retry python3 -m uv pip install -q --python "$venv/bin/python" \
        -e "${source}[prepare,sweep,stream]" "jax[${NIN_JAX_EXTRA:-tpu}]"
    "$venv/bin/python" -c 'import jax, sys; print("python:", *sys.version_info[:2], "jax:", jax.__version__)'
}

get_gcsfuse() {
    local key=/usr/share/keyrings/cloud.google.asc repository
    repository="https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main"
    retry sudo curl -fsS -o "$key" https://packages.cloud.google.com/apt/doc/apt-key.gpg
    echo "deb [signed-by=$key] $repository" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    apt_install gcsfuse
}

# Several VMs write to the bucket, so file metadata must not be cached (the two ttl flags). Orbax
# renames folders, which a bucket without a hierarchical namespace allows up to a limit only.
mount_bucket() {
    local mounted
    if mountpoint -q "$mount"; then
        mounted=$(findmnt -n -o SOURCE --mountpoint "$mount")
        [ "$mounted" = "$bucket" ] || fail "$mounted is mounted at $mount, not $bucket: unmount it first"
    else
        command -v gcsfuse >/dev/null || get_gcsfuse
        sudo umount -l "$mount" 2>/dev/null || true # what a gcsfuse that died left behind
        sudo mkdir -p "$mount"
        sudo chown "$(id -u):$(id -g)" "$mount"
        retry gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 \
            --metadata-cache-negative-ttl-secs=0 --rename-dir-limit=200000 "$bucket" "$mount"
    fi
    touch "$mount/.writable" ||
        fail "$bucket cannot be written to: give the VM's service account Storage Object User on it"
    echo "bucket: gs://$bucket at $mount"
}

get_source
get_python
mount_bucket
cd "$source"
for dataset in "$@"; do
    retry "$venv/bin/python" -m experiments.prepare "$dataset"
done
echo 'ready'
