//! What it takes to move output from a pipe to a log: buffers and a private pipe. They are lent for one step of one
//! stream, so that their number follows the work and not the containers.

use std::io;
use std::sync::{Mutex, PoisonError};

use kernel::fifo::Peek;
use tokio::sync::{Semaphore, SemaphorePermit};

/// How much of a pipe is looked at in one step, bytes.
pub const STEP: usize = 256 * 1024;
/// Steps at once. A disk that hangs holds this many threads and no more.
const STEPS: usize = 16;
/// Tools that are kept while nobody needs them.
const SPARE: usize = 2;

static PLACES: Semaphore = Semaphore::const_new(STEPS);
static IDLE: Mutex<Vec<Tools>> = Mutex::new(Vec::new());

pub struct Tools {
    pub peek: Peek,
    /// As long as [`STEP`].
    pub input: Vec<u8>,
    pub records: Vec<u8>,
}

impl Tools {
    fn new() -> io::Result<Self> {
        Ok(Self { peek: Peek::new(STEP)?, input: vec![0; STEP], records: Vec::new() })
    }
}

/// Tools and a place to use them. Dropped, the tools are gone; [`Lent::give_back`] keeps them for the next.
pub struct Lent {
    pub tools: Tools,
    _place: SemaphorePermit<'static>,
}

/// Waits for a place.
///
/// # Errors
/// Where no descriptors are left.
pub async fn lend() -> io::Result<Lent> {
    let place = PLACES.acquire().await.map_err(io::Error::other)?;
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    Ok(Lent { tools: idle.map_or_else(Tools::new, Ok)?, _place: place })
}

impl Lent {
    pub fn give_back(self) {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < SPARE {
            idle.push(self.tools);
        }
    }
}
