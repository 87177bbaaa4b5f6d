#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# First process of the Linux that hosts QEMU: runs the cases one after the other and prints a line "row ..." for
# each (measure.c), then "peer: done" or "peer: failed". /settings says how much of what.
export PATH=/bin HOME=/ LD_LIBRARY_PATH=/lib
guest=/tmp/guest # QEMU's serial port is the pipes guest.in and guest.out, and what it said is in guest.log

say()
{
    echo "peer: $*"
}

fail()
{
    say "failed: $*"
    tail -n 20 $guest.log /tmp/qemu.log
    sleep 1000000
}

# A line of the guest's console that begins with $1; at most $2 s.
wait_for()
{
    looks=0
    until grep -q "^$1" $guest.log; do
        looks=$((looks + 1))
        [ $looks -lt $(($2 * 5)) ] || fail "no $1 from the guest"
        [ -d "/proc/$pid" ] || fail "QEMU has ended"
        sleep 0.2
    done
}

# Runs a command in the guest's shell; what it printed is the end of guest.log.
in_guest()
{
    number=$((number + 1))
    echo "$1; echo; echo E\$(($number))" >&3
    wait_for "E$number" 600
}

# start NAME INIT_ON_ALLOC BALLOON_OPTIONS
start()
{
    name=$1
    number=0
    rm -f $guest.* /tmp/qmp
    mkfifo $guest.in $guest.out
    : >$guest.log
    cat $guest.out >$guest.log &
    reader=$!
    $QEMU -M microvm -accel kvm -cpu host -smp 1 -m "$MEMORY" -nodefaults -no-user-config -no-reboot -display none \
        -name guest,debug-threads=on -L /share -kernel /guests/vmlinuz -initrd /guests/initrd.img \
        -append "$CMDLINE quiet fusor=off init_on_alloc=$2 host=$name" -chardev "pipe,id=c,path=$guest" \
        -serial chardev:c -qmp unix:/tmp/qmp,server=on,wait=off -device "virtio-balloon-device$3" >/tmp/qemu.log 2>&1 &
    pid=$!
    exec 3<>$guest.in
    wait_for "$name:/#" 900
    sleep 5 # what the kernel still does after boot
    in_guest "mount -t tmpfs -o size=100% tmp /tmp; dmesg | grep -iE 'BUG|Oops|Call Trace'; grep -H . /sys/module/virtio_balloon/initstate"
    grep -q initstate:live $guest.log || fail "the guest has no virtio_balloon"
}

stop()
{
    exec 3>&-
    kill $pid
    wait $pid
    wait $reader
}

# From MEMORY to MEMORY - GIVE and back. The label's first word tells the case.
give_and_take()
{
    measure balloon /tmp/qmp $pid $((MEMORY - GIVE)) "$1,give" || fail "no row"
    measure balloon /tmp/qmp $pid "$MEMORY" "$1,take" || fail "no row"
}

# Has the guest write TOUCH MiB and free it again, so that the host provides what is free in the guest. What is
# measured begins after that: the kernel reports what was freed 2 s later.
touch_memory()
{
    in_guest "dd if=/dev/zero of=/tmp/big bs=1M count=$TOUCH && echo fine"
    grep -q '^fine' $guest.log || fail "the guest cannot write $TOUCH MiB"
    sleep 2
    in_guest "rm /tmp/big"
    measure watch $pid 10 "$1" || fail "no row"
}

if [ -z "$QEMU" ]; then
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev
    mount -t debugfs debugfs /sys/kernel/debug
    for module in /modules/*.ko; do
        insmod "$module" || fail "$module"
    done
    QEMU=qemu-system-x86_64-microvm
fi
# shellcheck source=/dev/null
. /settings
echo "$THP" >/sys/kernel/mm/transparent_hugepage/enabled
say "$(uname -srv), $(cat /sys/kernel/mm/transparent_hugepage/enabled)"
grep -H . /sys/devices/system/cpu/vulnerabilities/* | sed 's,.*/,peer: host ,'
for clear in 1 0; do
    start "clear$clear" $clear ""
    if [ $clear = 1 ]; then
        in_guest "grep -H . /sys/devices/system/cpu/vulnerabilities/* | sed 's,.*/,guest ,'"
        sed -n 's/^guest /peer: &/p' $guest.log
    fi
    measure watch $pid 10 "clear=$clear,idle"
    give_and_take "clear=$clear,untouched"
    touch_memory "clear=$clear,freed"
    give_and_take "clear=$clear,resident"
    stop
    start "report$clear" $clear ,free-page-reporting=on
    touch_memory "clear=$clear,reported"
    stop
done
say "done"
sleep 1000000
