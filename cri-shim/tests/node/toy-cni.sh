#!/bin/sh
# A CNI plugin for tests: gives eth0 the address 10.9.x.y and writes down what it was called for.
config=$(cat)
case $CNI_COMMAND in
VERSION)
    echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'
    exit 0 ;;
esac
echo "$CNI_COMMAND $CNI_CONTAINERID" >>LOG
case $CNI_COMMAND in
ADD)
    sum=$(printf %s "$CNI_CONTAINERID" | cksum | cut -d' ' -f1)
    address=10.9.$((sum / 200 % 200)).$((sum % 200 + 2))
    nsenter --net="$CNI_NETNS" sh -c "ip link add $CNI_IFNAME type veth peer name peer0 &&
        ip address add $address/16 dev $CNI_IFNAME && ip link set $CNI_IFNAME up" || exit 1
    echo "{\"cniVersion\":\"1.0.0\",\"interfaces\":[{\"name\":\"$CNI_IFNAME\",\"sandbox\":\"$CNI_NETNS\"}],\"ips\":[{\"address\":\"$address/16\",\"interface\":0}]}" ;;
esac
