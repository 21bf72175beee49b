"""What the guests run. All of it is root in its guest."""

# A well-behaved job.
WELL = "sleep 2; echo done"

# Hook-like calls, one a second, each with the time limit that hooks have. Ends by itself, should nobody delete it.
CALM = """\
#!/bin/sh
n=0
while [ $n -lt {calls} ]; do
    n=$((n + 1))
    said=$(curl -q -s -K /opt/mayfly/curlrc --noproxy '*' --connect-timeout 2 --max-time 5 -o /dev/null \\
        -w '%{{http_code}} %{{time_total}}' -X POST -H 'Content-Type: application/json' -d '{{"type":"job_started"}}' \\
        "$MAYFLY_URL/vms/$MAYFLY_VM_ID/events" </dev/null)
    echo "SOAK-HOOK $? $said" >/dev/console
    sleep 1
done
"""

# Everything that a guest can do to its host at once, for as long as it lives.
HOSTILE = """\
#!/bin/bash
exec >/dev/null 2>&1 </dev/null
kit=/opt/mayfly
auth=$(sed -n 's/^header *= *"\\(Authorization.*\\)"$/\\1/p' $kit/wrapper.curlrc)
address=${MAYFLY_URL#http://} address=${address%%/*}
host=${address%%:*} port=${address##*:}
[ "$port" = "$host" ] && port=80
ulimit -n 4096

flood() {
    head -c 65536 /dev/zero | tr '\\0' x >/tmp/junk
    while :; do cat /tmp/junk; done >/dev/console
}
# 2 stands for a crash that is handled: an event, and the guest runs on.
panic() {
    device=$(grep -l 0x0011 /sys/bus/pci/devices/*/device | head -n 1) device=${device%/device}
    echo 1 >"$device/enable"
    register=$(cut -d ' ' -f 1 "$device/resource" | head -n 1)
    while :; do devmem "$register" 8 2; done
}
# Each round ends when the first of its connections is answered or closed.
connections() {
    while :; do
        open=()
        for _ in {1..200}; do
            exec {fd}<>"/dev/tcp/$host/$port" || break
            open+=("$fd")
            printf 'POST /vms/%s/events HTTP/1.1\\r\\nhost: x\\r\\n%s\\r\\ncontent-type: application/json\\r\\ncontent-length: 50000\\r\\n\\r\\n{' \\
                "$MAYFLY_VM_ID" "$auth" >&"$fd"
        done
        [ ${#open[@]} -gt 0 ] && read -r -t 15 -u "${open[0]}"
        for fd in "${open[@]}"; do exec {fd}>&-; done
    done
}
# The largest ones that the guest API accepts.
reports() {
    rounds=$1
    {
        printf '{"type":"log","source":"job","data_base64":"'
        head -c 65000 /dev/zero | tr '\\0' A
        printf '"}'
    } >/tmp/report
    while [ "$rounds" -ne 0 ]; do
        rounds=$((rounds - 1))
        curl -q -s -K $kit/wrapper.curlrc --noproxy '*' --max-time 10 -X POST -H 'Content-Type: application/json' \\
            --data-binary @/tmp/report "$MAYFLY_URL/vms/$MAYFLY_VM_ID/events"
    done
}
names() {
    while :; do nslookup "$RANDOM.soak.test"; done
}

names &
# Before its own connections take the places of its reports.
reports 24
flood &
panic &
connections &
reports -1 &
wait
"""
