//! The keeper's own process: one thread, no runtime.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kernel::fifo;

use super::order::{LONGEST, Order};
use crate::folders::Folders;

/// Between two looks at what has gone without a word.
const LOOK: Duration = Duration::from_secs(10);
/// So long it waits for a `bosun cri` while it holds nothing.
const LONELY: Duration = Duration::from_secs(60);
/// After it could not accept a client, mostly for want of descriptors: who waits there would be told of again at once.
const PAUSE: Duration = Duration::from_millis(100);
/// An answer is a few bytes: who does not take it has gone wrong.
const ANSWER: Duration = Duration::from_secs(1);

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io { attempt: &'static str, path: PathBuf, source: io::Error },
}

/// Keeps what it is told on `socket`, which lies in `bosun cri`'s folder of state, until that folder is gone or nobody
/// needs it. At once where another keeper answers there.
///
/// # Errors
/// Where the socket cannot be made.
pub fn serve(socket: &Path) -> Result<(), KeeperError> {
    let failed = |attempt| move |source| KeeperError::Io { attempt, path: socket.to_owned(), source };
    if UnixStream::connect(socket).is_ok() {
        return Ok(());
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed("listen on"))?;
    fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(failed("set the mode of"))?;
    // With fewer it says so when they run out.
    let _ = kernel::process::allow_all_open_files();
    let state = socket.parent().unwrap_or(Path::new("/"));
    let held = Held { folders: Folders { root: PathBuf::new(), state: state.to_owned() }, pipes: BTreeMap::new() };
    keep(socket, &listener, held).map_err(failed("wait for clients of"))
}

fn keep(socket: &Path, listener: &UnixListener, mut held: Held) -> io::Result<()> {
    let own = number(socket);
    let mut clients: Vec<Client> = Vec::new();
    let mut alone_since = Instant::now();
    let mut refused: Option<Instant> = None;
    loop {
        let rest = rest(refused.map(|at| at.elapsed()));
        let listening = rest.is_none().then(|| listener.as_fd());
        let all: Vec<_> = clients.iter().map(|one| one.stream.as_fd()).chain(listening).collect();
        let ready = kernel::poll::readable(&all, rest.unwrap_or(LOOK))?;
        let mut each = ready.iter();
        clients.retain_mut(|client| each.next() != Some(&true) || client.converse(&mut held).is_ok());
        if each.next() == Some(&true) {
            match listener.accept() {
                Ok((stream, _)) => clients.push(Client { stream, line: Vec::new() }),
                // What clients give up meanwhile, and what has gone, frees descriptors.
                Err(_) => refused = Some(Instant::now()),
            }
        }
        if !clients.is_empty() {
            alone_since = Instant::now();
        }
        if !ready.contains(&true) {
            held.forget_gone();
            let reachable = own.is_some() && number(socket) == own;
            if is_over(reachable, held.pipes.is_empty(), alone_since.elapsed()) {
                return Ok(());
            }
        }
    }
}

/// How long no client is accepted yet, so long after one could not be.
fn rest(since: Option<Duration>) -> Option<Duration> {
    PAUSE.checked_sub(since?).filter(|rest| !rest.is_zero())
}

/// Which file the socket is: with the folder gone, or another keeper's socket in its place, nobody can speak to us.
fn number(socket: &Path) -> Option<u64> {
    fs::symlink_metadata(socket).ok().map(|meta| meta.ino())
}

fn is_over(reachable: bool, holds_nothing: bool, alone: Duration) -> bool {
    !reachable || (holds_nothing && alone >= LONELY)
}

/// The outputs that are held open, by container.
struct Held {
    folders: Folders,
    pipes: BTreeMap<String, Vec<File>>,
}

impl Held {
    fn obey(&mut self, order: Order) -> Result<(), fifo::Error> {
        match order {
            Order::Hold(id) => {
                let opened = self.open(&id)?;
                // Those of before are closed only now: the bytes in them stay.
                self.pipes.insert(id, opened);
            }
            Order::Drop(id) => drop(self.pipes.remove(&id)),
        }
        Ok(())
    }

    fn open(&self, id: &str) -> Result<Vec<File>, fifo::Error> {
        let folder = self.folders.container(id).io();
        let stdout = fifo::open_reader(&folder.join("stdout"))?;
        let stderr = folder.join("stderr");
        // A terminal has one output.
        if !stderr.exists() {
            return Ok(vec![stdout]);
        }
        Ok(vec![stdout, fifo::open_reader(&stderr)?])
    }

    /// Containers that were removed while nobody was there to say so.
    fn forget_gone(&mut self) {
        let folders = &self.folders;
        self.pipes.retain(|id, _| folders.container(id).io().join("stdout").exists());
    }
}

struct Client {
    stream: UnixStream,
    /// The beginning of a line that has not come to its end.
    line: Vec<u8>,
}

impl Client {
    /// Takes what has come and answers it. An error is the end of the conversation.
    fn converse(&mut self, held: &mut Held) -> io::Result<()> {
        let mut buffer = [0; LONGEST];
        let count = self.stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.stream.set_write_timeout(Some(ANSWER))?;
        for byte in &buffer[..count] {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let order = Order::parse(&self.line);
            self.line.clear();
            let answer = match order.map(|order| held.obey(order)) {
                Some(Ok(())) => "ok\n".to_owned(),
                Some(Err(error)) => format!("error {error}\n"),
                None => "error no such order\n".to_owned(),
            };
            self.stream.write_all(answer.as_bytes())?;
        }
        if self.line.len() > LONGEST { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    #[test]
    fn it_ends_when_nobody_can_need_it() {
        let (short, long) = (Duration::from_secs(59), Duration::from_secs(60));
        assert!(!is_over(true, true, short));
        assert!(is_over(true, true, long));
        assert!(!is_over(true, false, long), "it holds output");
        assert!(is_over(false, false, Duration::ZERO), "nobody can speak to it");
    }

    #[test]
    fn after_a_client_that_could_not_be_accepted_it_rests() {
        assert_eq!(rest(None), None);
        assert_eq!(rest(Some(Duration::ZERO)), Some(PAUSE));
        assert_eq!(rest(Some(PAUSE / 4)), Some(PAUSE * 3 / 4));
        assert_eq!(rest(Some(PAUSE)), None);
        assert_eq!(rest(Some(PAUSE * 2)), None);
    }

    fn ask(stream: &UnixStream, line: &str) -> String {
        let mut writer = stream;
        writeln!(writer, "{line}").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    #[test]
    fn what_is_held_outlives_its_writer_and_what_is_dropped_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("keeper.sock");
        let io = dir.path().join("containers/c1/io");
        fs::create_dir_all(&io).unwrap();
        let stdout = io.join("stdout");
        fifo::make(&stdout, 0o600).unwrap();
        // It ends with the test's process.
        std::thread::spawn({
            let socket = socket.clone();
            move || serve(&socket)
        });
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        assert_eq!(ask(&stream, "hold c1"), "ok");
        assert_eq!(ask(&stream, "hold c1"), "ok");
        assert!(ask(&stream, "hold c2").starts_with("error cannot open the named pipe"));
        assert_eq!(ask(&stream, "hold ../c1"), "error no such order");
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);

        let write = |text: &str| fifo::open_writer(&stdout).unwrap().write_all(text.as_bytes()).unwrap();
        let mut text = String::new();
        write("one\n");
        assert_eq!(ask(&stream, "hold c1"), "ok", "another opening does not lose what is there");
        fifo::open_reader(&stdout).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\n");
        write("two\n");
        assert_eq!(ask(&stream, "drop c1"), "ok");
        assert_eq!(ask(&stream, "drop c1"), "ok");
        fifo::open_reader(&stdout).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\n", "nobody held it");
        assert!(serve(&socket).is_ok(), "there is one already");
    }

    #[test]
    fn what_was_removed_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders { root: PathBuf::new(), state: dir.path().to_owned() };
        let mut held = Held { folders: folders.clone(), pipes: BTreeMap::new() };
        for id in ["a", "b"] {
            fs::create_dir_all(folders.container(id).io()).unwrap();
            fifo::make(&folders.container(id).io().join("stdout"), 0o600).unwrap();
            held.obey(Order::Hold(id.to_owned())).unwrap();
        }
        fs::remove_dir_all(folders.container("a").state).unwrap();
        held.forget_gone();
        assert_eq!(held.pipes.keys().collect::<Vec<_>>(), ["b"]);
    }
}
