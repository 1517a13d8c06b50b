#!/usr/bin/env bash
# Two nodes on one machine, to rehearse a launch before a cluster is asked for it: each with a launcher of its own, which
# find each other as they would there. As root the nodes have a network each, joined by a cable; otherwise both are at
# 127.0.0.1.
#
#   launch/two_nodes.sh torchrun federate configs/demo.yaml variant=fedavg 'seeds=[1]'
#   launch/two_nodes.sh accelerate pretrain CONFIG launch=launch/accelerate/fsdp2.yaml
#   launch/two_nodes.sh --ranks 2 deepspeed align CONFIG
set -euo pipefail

ranks=1 # of a node
if [ "${1:-}" = --ranks ]; then
    ranks=${2:?two_nodes.sh: --ranks needs a number}
    shift 2
fi
case "${1:-}" in
torchrun | accelerate | deepspeed) ;;
*)
    echo "two_nodes.sh: expected [--ranks N] torchrun|accelerate|deepspeed STAGE CONFIG... [key=value...]" >&2
    exit 2
    ;;
esac
launcher=$1
shift

here=$(cd "$(dirname "$0")" && pwd)
name=fedscale-$$
scratch=$(mktemp -d)
agents=()
networks=()

# Whatever happens: no launcher goes on, and no network stays.
clean_up() {
    if [ "${#agents[@]}" -gt 0 ]; then
        kill -TERM "${agents[@]}" 2>/dev/null || true
        wait "${agents[@]}" 2>/dev/null || true
    fi
    for network in "${networks[@]}"; do ip netns delete "$network" || true; done
    rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# A network for each node: an interface eth0, one end of the cable, and its own 127.0.0.1.
addresses=(10.99.0.1 10.99.0.2)
if [ "$(id -u)" -eq 0 ] && ip netns add "$name-0" 2>/dev/null; then
    networks=("$name-0" "$name-1")
    ip netns add "$name-1"
    ip -netns "$name-0" link add eth0 type veth peer name eth0 netns "$name-1"
    for node in 0 1; do
        ip -netns "$name-$node" address add "${addresses[node]}/24" dev eth0
        ip -netns "$name-$node" link set eth0 up
        ip -netns "$name-$node" link set lo up
    done
    # The machine's name leads to 127.0.0.1 in both, where the other one is not: gloo and NCCL are told the interface.
    export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0
    echo "two nodes: networks ${networks[*]}" >&2
else
    addresses=(127.0.0.1 127.0.0.1)
    echo "two nodes: both at 127.0.0.1 (networks of their own need root and ip)" >&2
fi
port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
export OMP_NUM_THREADS=1
# torchrun: a meeting place for each start of the ranks, as in launch/slurm/parts/torchrun.sh.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# The launcher of a node with the stage's words, in the node's network.
launch_node() {
    local node=$1 enter=()
    shift
    if [ "${#networks[@]}" -gt 0 ]; then enter=(ip netns exec "${networks[node]}"); fi
    case "$launcher" in
    torchrun)
        exec "${enter[@]}" python -m torch.distributed.run --nnodes=2 --nproc-per-node="$ranks" \
            --rdzv-backend=c10d --rdzv-id="$name" --rdzv-endpoint="${addresses[0]}:$port" \
            --rdzv-conf="is_host=$((node == 0))" --local-addr="${addresses[node]}" -m fedscale "$@"
        ;;
    accelerate)
        exec "${enter[@]}" python -m accelerate.commands.launch --config_file "$here/accelerate/ddp.yaml" \
            --num_machines 2 --num_processes $((2 * ranks)) --machine_rank "$node" \
            --main_process_ip "${addresses[0]}" --main_process_port "$port" --same_network \
            --num_cpu_threads_per_process 1 --dynamo_backend no --module fedscale "$@"
        ;;
    deepspeed)
        exec "${enter[@]}" python -m deepspeed.launcher.runner --hostfile "$scratch/hosts" --no_ssh \
            --node_rank "$node" --master_addr "${addresses[0]}" --master_port "$port" --module fedscale "$@"
        ;;
    esac
}
printf "node%d slots=$ranks\n" 0 1 >"$scratch/hosts"

for node in 0 1; do
    launch_node "$node" "$@" &
    agents+=("$!")
done
# The first that fails ends the other; both have to end well.
wait -n "${agents[@]}"
wait "${agents[0]}"
wait "${agents[1]}"
