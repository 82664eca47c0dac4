# The speed of volumes beside that of the bare disk under them.
#
#   io.sh CARINA ROUNDS SECONDS host|guest
#
# Prints a line for each run of fio: `io KIND PATTERN volume|bare FIGURE`, in KiB/s for the sequential patterns
# and in operations a second for the random ones. A raw volume is measured against the same blocks of its own
# disk; a thin volume against a second disk like its own.
set -euo pipefail
carina=$1 rounds=$2 seconds=$3 where=$4
if [ "$where" = host ]; then
    # In memory, where no other program's I/O is in the way, and the disk costs least.
    folder=$(mktemp -d -p /dev/shm)
    span=256M backend=raw
    truncate -s 12G "$folder/disk"
    disk=$(losetup --find --show "$folder/disk")
    trap 'delpart "$disk" 1 || true; losetup --detach "$disk"; rm -r "$folder"' EXIT
    groups="{\"name\": \"io-raw-$$\", \"re\": [\"${disk##*/}\"], \"policy\": \"RAW\"}"
else
    folder=$(mktemp -d)
    span=128M backend=lvm+raw
    disk=$(readlink -f /dev/disk/vm/disk0) lvm=$(readlink -f /dev/disk/vm/disk1) bare=$(readlink -f /dev/disk/vm/disk2)
    groups="{\"name\": \"io-raw-$$\", \"re\": [\"${disk##*/}\"], \"policy\": \"RAW\"},
            {\"name\": \"io-lvm-$$\", \"re\": [\"${lvm##*/}\"], \"policy\": \"LVM\"}"
fi
config=$folder/config.json
echo "{\"diskSelector\": [$groups]}" > "$config"
on=(--backend "$backend" --config "$config")
"$carina" apply "${on[@]}" >&2

# Makes a volume and says where its device is. Another run beside this one has others.
volume() {
    "$carina" create "io-$1-$$" 1Gi --volume-type "$1" --group "io-$1-$$" "${on[@]}" >&2
    "$carina" ls "${on[@]}" | awk -v id="volume-io-$1-$$" '$1 == id { print $(NF-1) }'
}

# DEVICE OFFSET PATTERN: the fields of fio's terse output, version 3.
measure() {
    local block=1M fields
    case $3 in rand*) block=4k ;; esac
    case $3 in read) fields=7 ;; randread) fields=8 ;; write) fields=48 ;; randwrite) fields=49 ;; esac
    fio --name=io --thread --filename="$1" --offset="$2" --size=$span --rw="$3" --bs=$block --iodepth=16 \
        --ioengine=libaio --direct=1 ${4:---time_based --runtime="$seconds"} \
        --output-format=terse --terse-version=3 | cut -d';' -f$fields
}

# KIND, and the DEVICE OFFSET of the volume and of what is bare, in turn; first whom is turned each round.
compare() {
    local kind=$1 pattern round
    # Nothing is measured on blocks that were never written.
    measure "$2" "$3" write "--loops=1" > /dev/null
    measure "$4" "$5" write "--loops=1" > /dev/null
    for pattern in read write randread randwrite; do
        for ((round = 1; round <= rounds; round++)); do
            if ((round % 2)); then
                echo "io $kind $pattern volume $(measure "$2" "$3" $pattern)"
                echo "io $kind $pattern bare $(measure "$4" "$5" $pattern)"
            else
                echo "io $kind $pattern bare $(measure "$4" "$5" $pattern)"
                echo "io $kind $pattern volume $(measure "$2" "$3" $pattern)"
            fi
        done
    done
}

raw=$(volume raw)
compare raw "$raw" 0 "$disk" $(($(cat "/sys/class/block/${raw##*/}/start") * 512))
if [ "$where" = guest ]; then
    compare thin "$(volume lvm)" 0 "$bare" 0
fi
