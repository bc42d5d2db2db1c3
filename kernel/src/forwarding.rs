//! Making the host a router. Source: the kernel's Documentation/networking/ip-sysctl.rst.

use std::fs;

use crate::sysctl::{self, Error};

/// Where it is said whether packets of IPv4 are passed on.
pub const V4: &str = "net/ipv4/ip_forward";
/// The same of IPv6.
pub const V6: &str = "net/ipv6/conf/all/forwarding";

/// Passes packets on between interfaces from now on, for the families named. A host that learnt its default route of
/// IPv6 from a router keeps it: as a router itself it would else no longer listen to others.
///
/// # Errors
/// Where this kernel has not the family, or /proc/sys cannot be written.
pub fn enable(v4: bool, v6: bool) -> Result<(), Error> {
    if v4 {
        sysctl::write(V4, "1")?;
    }
    if v6 && sysctl::read(V6)? != "1" {
        for interface in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
            let name = format!("net/ipv6/conf/{}/accept_ra", interface.file_name().to_string_lossy());
            // 1 listens to routers unless it is one, 2 listens also then.
            if sysctl::read(&name).is_ok_and(|value| value == "1") {
                sysctl::write(&name, "2")?;
            }
        }
        sysctl::write(V6, "1")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_still_listens_to_routers() {
        if !crate::test::root("forwarding") {
            return;
        }
        let netns = crate::netns::Netns::anonymous().unwrap();
        netns
            .run(|| {
                sysctl::write(V6, "0").unwrap();
                sysctl::write("net/ipv6/conf/lo/accept_ra", "1").unwrap();
                enable(true, true).unwrap();
                assert_eq!(sysctl::read(V4).unwrap(), "1");
                assert_eq!(sysctl::read(V6).unwrap(), "1");
                assert_eq!(sysctl::read("net/ipv6/conf/lo/accept_ra").unwrap(), "2");
            })
            .unwrap();
    }
}
