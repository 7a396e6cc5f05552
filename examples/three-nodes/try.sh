#!/bin/sh
# Three nodes on this machine, each in a network namespace of its own, joined by a bridge and by
# one shared volume on a loop device. The bridge is cut; the pings go on; the bridge is healed.
#
#   sudo examples/three-nodes/try.sh [PATH/TO/sidepath]
#
# Takes a minute, needs root, iproute2 and ping. Everything it makes is removed at the end: the
# namespaces are called sp-try-*, the files lie in a temporary folder.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
sidepath=${1:-$here/../../target/release/sidepath}
nodes="alpha beta gamma"

fail() { echo "try.sh: $*" >&2; exit 2; }
say() { printf '\n=== %s\n' "$*"; }
ask() { "$sidepath" "$1" ${2:+"$2"} ${3:+"$3"} ${4:+"$4"} --config "$work/alpha.toml"; }

[ "$(id -u)" = 0 ] || fail "needs root, for namespaces and TUN devices"
[ -x "$sidepath" ] || fail "no program at $sidepath: cargo build --release, or give its path"
[ -c /dev/net/tun ] || fail "no /dev/net/tun: modprobe tun"
for tool in ip losetup ping; do
    command -v $tool >/dev/null || fail "needs $tool"
done

work=$(mktemp -d)
pids="" loop="" pinger=""
cleanup() {
    trap - EXIT INT TERM
    for pid in $pinger $pids; do kill "$pid" 2>/dev/null || true; done
    for pid in $pids; do wait "$pid" 2>/dev/null || true; done
    for node in $nodes bridge; do ip netns del "sp-try-$node" 2>/dev/null || true; done
    [ -z "$loop" ] || losetup -d "$loop" || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say "a bridge and three machines on it: 192.0.2.1, .2, .3"
ip netns add sp-try-bridge
ip -n sp-try-bridge link add br0 type bridge
ip -n sp-try-bridge link set br0 up
id=0
for node in $nodes; do
    id=$((id + 1))
    ip netns add "sp-try-$node"
    ip -n "sp-try-$node" link add eth0 type veth peer name "$node" netns sp-try-bridge
    ip -n "sp-try-$node" addr add "192.0.2.$id/24" dev eth0
    ip -n "sp-try-$node" link set lo up
    ip -n "sp-try-$node" link set eth0 up
    ip -n sp-try-bridge link set "$node" master br0 up
done

say "one volume that all three reach (a loop device stands for a LUN)"
truncate -s 256M "$work/lun"
# Direct I/O down to the file, as on a real device, where the kernel allows it.
loop=$(losetup --find --show --direct-io=on "$work/lun" 2>/dev/null ||
    losetup --find --show "$work/lun")
"$sidepath" volume init "$loop" --name example --nodes 1,2,3

say "keys and configurations"
for node in $nodes; do
    "$sidepath" keygen --out "$work/$node.key" >"$work/$node.pub" 2>/dev/null
done
for node in $nodes; do
    sed -e "s|@VOLUME@|$loop|" \
        -e "s|@ALPHA_PUBLIC_KEY@|$(cat "$work/alpha.pub")|" \
        -e "s|@BETA_PUBLIC_KEY@|$(cat "$work/beta.pub")|" \
        -e "s|@GAMMA_PUBLIC_KEY@|$(cat "$work/gamma.pub")|" \
        "$here/$node.toml" >"$work/$node.toml"
    "$sidepath" config check "$work/$node.toml"
done

say "three daemons"
for node in $nodes; do
    # `ip netns exec` becomes the program, so that the number below is the daemon's.
    ip netns exec "sp-try-$node" "$sidepath" run --config "$work/$node.toml" >"$work/$node.log" 2>&1 &
    pids="$pids $!"
done
tries=0
until ask peers 2>/dev/null | awk '$5 == "up" && $6 == "up" { n++ } END { exit n != 2 }'; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { cat "$work"/*.log; fail "the nodes did not meet"; }
    sleep 0.2
done
ask status

say "alpha pings beta over the virtual interface, ten times a second; in 3 s the bridge goes down"
ip netns exec sp-try-alpha ping -i 0.1 -c 150 10.98.0.2 >"$work/ping" &
pinger=$!
sleep 3
ip -n sp-try-bridge link set br0 down
echo "the bridge is down: no two machines reach each other by network"
sleep 1
ask peers
ask ping beta -c 3
sleep 3

say "the bridge comes back"
ip -n sp-try-bridge link set br0 up
sleep 4
ask peers
wait "$pinger" || true
pinger=""

say "what the pings noticed of four seconds without a network"
tail -n 3 "$work/ping"
ask status
say "done; cleaning up"
