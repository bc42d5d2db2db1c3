//! The differences from kube-proxy that are meant, each with its reason.

use std::net::SocketAddr;

use super::probe::Fate;
use super::table::Row;

/// Whether a difference is kube-proxy's, and meant.
pub fn known(mode: &str, (row, place, to): (&Row, &str, SocketAddr), theirs: &Fate, ours: &Fate) -> bool {
    let itself = |text: &&String| text.starts_with(&format!("{place} sees "));
    // Where external traffic stays on the node, a pod that asks another node may be led to itself. kube-proxy's modes
    // nftables and ipvs lose what comes back, its iptables mode and bosun do not.
    let hairpin =
        mode != "iptables" && row.is_local() && theirs.contains("dropped") && ours.iter().any(|text| itself(&text));
    // What has no endpoints is refused; kube-proxy's iptables mode forgets the node's own packets to addresses that are
    // not the cluster's.
    let external = mode == "iptables"
        && place.starts_with("node")
        && to.ip().to_string().starts_with("203.0.113.")
        && theirs.iter().all(|text| text == "dropped")
        && ours.iter().all(|text| text == "refused" || text.starts_with("Operation not permitted"));
    // What the node itself sends to such a Service is masqueraded in kube-proxy's other modes, not in ipvs: there the
    // endpoint sees the Service's address, and one on another node cannot answer.
    let own = mode == "ipvs" && place.starts_with("node") && row.is_local() && !ours.contains("dropped");
    // kube-proxy's mode ipvs refuses what the policy leaves no endpoint, the other modes drop it.
    let inside = mode == "ipvs" && row.is_local_inside() && refusal(theirs, "refused") && refusal(ours, "dropped");
    hairpin || external || own || inside
}

fn refusal(fate: &Fate, word: &str) -> bool {
    fate.iter().all(|text| text == word)
}

/// kube-proxy's mode ipvs sends flows of UDP elsewhere when their endpoint begins to end, though it still serves.
pub fn flow(mode: &str, what: &str, theirs: &str) -> bool {
    mode == "ipvs" && what == "while its endpoint ends" && theirs.starts_with("a ")
}
