//! Kernel parameters under /proc/sys. Those below `net` belong to the network namespace of the thread that writes.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} sysctl {name}: {source}")]
pub struct Error {
    pub verb: &'static str,
    pub name: String,
    pub source: io::Error,
}

/// Reads `net/ipv4/ip_forward`, for instance (slashes, because an interface's name may hold a dot), without its newline.
///
/// # Errors
/// Where this kernel has no such parameter, or /proc is not mounted.
pub fn read(name: &str) -> Result<String, Error> {
    let text = std::fs::read_to_string(path(name));
    text.map(|text| text.trim_end().to_owned()).map_err(|source| Error { verb: "read", name: name.to_owned(), source })
}

/// Makes the parameter `value`. What has that value already is not written, so that a read-only /proc/sys with the
/// right values is enough. Returns whether it changed.
///
/// # Errors
/// Where this kernel has no such parameter, or refuses the value.
pub fn write(name: &str, value: &str) -> Result<bool, Error> {
    match read(name) {
        Ok(present) if present == value => return Ok(false),
        // Some are only ever written, net/ipv4/route/flush for instance.
        Err(error) if error.source.kind() != io::ErrorKind::PermissionDenied => return Err(error),
        _ => {}
    }
    let wrote = std::fs::write(path(name), value);
    wrote.map(|()| true).map_err(|source| Error { verb: "set", name: name.to_owned(), source })
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn net_parameters_belong_to_the_namespace() {
        if !crate::test::root("sysctl") {
            return;
        }
        let before = read("net/ipv4/conf/lo/forwarding").unwrap();
        let netns = crate::netns::Netns::anonymous().unwrap();
        netns
            .run(|| {
                write("net/ipv4/conf/lo/forwarding", "0").unwrap();
                assert!(write("net/ipv4/conf/lo/forwarding", "1").unwrap());
                assert!(!write("net/ipv4/conf/lo/forwarding", "1").unwrap());
            })
            .unwrap();
        assert_eq!(read("net/ipv4/conf/lo/forwarding").unwrap(), before);
        let error = write("net/ipv4/nosuch", "1").unwrap_err();
        assert!(error.to_string().starts_with("cannot read sysctl net/ipv4/nosuch"), "{error}");
    }
}
