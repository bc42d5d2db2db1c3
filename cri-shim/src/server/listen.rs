//! The unix socket on which the CRI is served.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot serve the CRI on {0:?}: only unix:///path is supported")]
    Form(String),
    #[error("cannot serve the CRI on {}: another program answers there already", .0.display())]
    Taken(PathBuf),
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io { attempt: &'static str, path: PathBuf, source: io::Error },
}

/// The path of `unix:///path`, or of a bare path.
///
/// # Errors
/// For any other form.
pub fn path(endpoint: &str) -> Result<PathBuf, Error> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if path.starts_with('/') { Ok(path.into()) } else { Err(Error::Form(endpoint.to_owned())) }
}

/// Listens on `path`, for root alone. A socket that nobody serves any more is replaced.
///
/// # Errors
/// Where somebody answers there, or the kernel refuses.
pub async fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed = |attempt| move |source| Error::Io { attempt, path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(Error::Taken(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    let mode = std::fs::Permissions::from_mode(0o660);
    std::fs::set_permissions(path, mode).map_err(failed("set the mode of"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/cri.sock");
        let first = listen(&socket).await.unwrap();
        assert!(matches!(listen(&socket).await, Err(Error::Taken(_))));
        drop(first);
        listen(&socket).await.unwrap();
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    }

    #[test]
    fn an_endpoint_is_a_path() {
        assert_eq!(path("unix:///run/cri.sock").unwrap(), Path::new("/run/cri.sock"));
        assert_eq!(path("/run/cri.sock").unwrap(), Path::new("/run/cri.sock"));
        assert!(matches!(path("tcp://1.2.3.4:5"), Err(Error::Form(_))));
    }
}
