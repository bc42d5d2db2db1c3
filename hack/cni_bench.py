"""Times CNI plugins as a runtime calls them: one process for each plugin of the list. Runs inside a namespace of its own."""
import json
import os
import subprocess
import sys
import time

ROUNDS = int(sys.argv[1])
FOLDERS = {"bosun": "/run/bosun-cni", "upstream": os.environ["BOSUN_PEERS"] + "/cni"}


def call(folder, command, plugin, config, container):
    env = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": f"/run/netns/{container}",
           "CNI_IFNAME": "eth0", "CNI_PATH": folder, "PATH": os.environ["PATH"]}
    begin = time.perf_counter()
    done = subprocess.run([f"{folder}/{plugin}"], input=json.dumps(config).encode(), env=env, capture_output=True)
    took = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{folder}/{plugin} {command}: {done.stdout.decode()}{done.stderr.decode()}")
    return took, json.loads(done.stdout or b"null")


def configs(side, number):
    octet = 1 if side == "bosun" else 2
    bridge = {"cniVersion": "1.0.0", "name": side, "type": "bridge", "bridge": "br-" + side, "isGateway": True, "ipMasq": True,
              "ipMasqBackend": "nftables", "hairpinMode": True,
              "ipam": {"type": "host-local", "dataDir": "/run/ipam", "ranges": [[{"subnet": f"10.{octet}.0.0/16"}]]}}
    ports = {"cniVersion": "1.0.0", "name": side, "type": "portmap", "backend": "nftables",
             "runtimeConfig": {"portMappings": [{"hostPort": 10000 + number, "containerPort": 80, "protocol": "tcp"}]}}
    return bridge, ports


def median(samples):
    return round(1000 * sorted(samples)[len(samples) // 2], 2)


os.makedirs(FOLDERS["bosun"])
for plugin in ("bridge", "host-local", "portmap", "loopback"):
    os.symlink(os.path.realpath(os.environ["BOSUN"] + "/bosun-cni"), f"{FOLDERS['bosun']}/{plugin}")
times = {side: {step: [] for step in ("bridge_add", "portmap_add", "portmap_del", "bridge_del")} for side in FOLDERS}
for number in range(ROUNDS):
    for side, folder in FOLDERS.items():
        container = f"{side}-{number}"
        subprocess.run(["ip", "netns", "add", container], check=True)
        bridge, ports = configs(side, number)
        took, result = call(folder, "ADD", "bridge", bridge, container)
        times[side]["bridge_add"].append(took)
        ports["prevResult"] = bridge["prevResult"] = result
        times[side]["portmap_add"].append(call(folder, "ADD", "portmap", ports, container)[0])
        times[side]["portmap_del"].append(call(folder, "DEL", "portmap", ports, container)[0])
        times[side]["bridge_del"].append(call(folder, "DEL", "bridge", bridge, container)[0])
        subprocess.run(["ip", "netns", "delete", container], check=True)
for side, steps in times.items():
    print(side, "cni", json.dumps({step + "_p50_ms": median(samples) for step, samples in steps.items()}))
