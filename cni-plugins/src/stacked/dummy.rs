//! `dummy`: a link that leads nowhere, for addresses.

use api::cni::Error;
use kernel::netlink::Kind;

use super::{Parent, Wanted};
use crate::skel::Call;

pub fn wanted(_call: &Call) -> Result<Wanted, Error> {
    Ok(Wanted { kind: Kind::Dummy, parent: Parent::None, parent_inside: true, mtu: 0, mac: None, notify: false })
}
