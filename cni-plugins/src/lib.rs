//! The CNI plugins, each behind [`skel::Plugin`]; the program `bosun-cni` is called by their names.

mod bandwidth;
mod bridge;
mod firewall;
mod host_device;
mod host_local;
mod interface;
mod ipam;
mod listing;
mod loopback;
mod masquerade;
mod policy;
mod portmap;
mod ptp;
mod routed;
mod sbr;
pub mod skel;
mod stacked;
mod static_addresses;
mod tuning;
mod veth;

/// Each plugin by the name under which it is installed.
pub const PLUGINS: [(&str, &dyn skel::Plugin); 17] = [
    ("loopback", &loopback::Loopback),
    ("bridge", &bridge::Bridge),
    ("ptp", &ptp::Ptp),
    ("routed", &routed::Routed),
    ("host-device", &host_device::HostDevice),
    ("macvlan", &stacked::MACVLAN),
    ("ipvlan", &stacked::IPVLAN),
    ("vlan", &stacked::VLAN),
    ("dummy", &stacked::DUMMY),
    ("host-local", &host_local::HostLocal),
    ("static", &static_addresses::Static),
    ("policy", &policy::Policy),
    ("portmap", &portmap::Portmap),
    ("bandwidth", &bandwidth::Bandwidth),
    ("firewall", &firewall::Firewall),
    ("tuning", &tuning::Tuning),
    ("sbr", &sbr::Sbr),
];
