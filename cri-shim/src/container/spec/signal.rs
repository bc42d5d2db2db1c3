//! The signal that asks a container to end. Sources: signal(7), CRI's Signal, the OCI image spec's `StopSignal`.

use cri::v1::{ContainerConfig, Signal};
use oci_spec::image::Config as ImageConfig;

use super::SpecError;

/// A stop signal, for kill(2) and for a container's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopSignal {
    pub number: u32,
    pub cri: Signal,
}

/// Numbers of x86, ARM and most others; `SIGSTKFLT` and `SIGPWR` too. Where two names have one number, both stand here.
const NAMED: [(&str, u32); 34] = [
    ("SIGABRT", 6),
    ("SIGALRM", 14),
    ("SIGBUS", 7),
    ("SIGCHLD", 17),
    ("SIGCLD", 17),
    ("SIGCONT", 18),
    ("SIGFPE", 8),
    ("SIGHUP", 1),
    ("SIGILL", 4),
    ("SIGINT", 2),
    ("SIGIO", 29),
    ("SIGIOT", 6),
    ("SIGKILL", 9),
    ("SIGPIPE", 13),
    ("SIGPOLL", 29),
    ("SIGPROF", 27),
    ("SIGPWR", 30),
    ("SIGQUIT", 3),
    ("SIGSEGV", 11),
    ("SIGSTKFLT", 16),
    ("SIGSTOP", 19),
    ("SIGSYS", 31),
    ("SIGTERM", 15),
    ("SIGTRAP", 5),
    ("SIGTSTP", 20),
    ("SIGTTIN", 21),
    ("SIGTTOU", 22),
    ("SIGURG", 23),
    ("SIGUSR1", 10),
    ("SIGUSR2", 12),
    ("SIGVTALRM", 26),
    ("SIGWINCH", 28),
    ("SIGXCPU", 24),
    ("SIGXFSZ", 25),
];
/// The first and the last real-time signal as glibc and musl leave them to programs.
const REAL_TIME: (u32, u32) = (34, 64);
/// CRI's number of SIGRTMIN; SIGRTMAX is its 65.
const CRI_REAL_TIME: i32 = Signal::Sigrtmin as i32;

/// The config's signal, else the image's, else SIGTERM.
///
/// # Errors
/// Where it is none.
pub fn stop_signal(config: &ContainerConfig, image: &ImageConfig) -> Result<StopSignal, SpecError> {
    match Signal::try_from(config.stop_signal) {
        Ok(Signal::RuntimeDefault) => {}
        Ok(signal) => return Ok(StopSignal { number: number(signal), cri: signal }),
        Err(_) => return Err(SpecError::StopSignal(config.stop_signal.to_string())),
    }
    let named = image.stop_signal().as_deref().unwrap_or_default();
    if named.is_empty() {
        return Ok(StopSignal { number: 15, cri: Signal::Sigterm });
    }
    let number = parse(named).ok_or_else(|| SpecError::StopSignal(named.into()))?;
    Ok(StopSignal { number, cri: of_number(number) })
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `SIGRTMAX-2`.
fn parse(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=REAL_TIME.1).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    if let Some(offset) = name.strip_prefix("SIGRTMIN") {
        return real_time(offset, '+').map(|n| REAL_TIME.0 + n);
    }
    if let Some(offset) = name.strip_prefix("SIGRTMAX") {
        return real_time(offset, '-').map(|n| REAL_TIME.1 - n);
    }
    NAMED.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

fn real_time(offset: &str, sign: char) -> Option<u32> {
    if offset.is_empty() {
        return Some(0);
    }
    offset.strip_prefix(sign)?.parse().ok().filter(|n| *n <= REAL_TIME.1 - REAL_TIME.0)
}

fn number(signal: Signal) -> u32 {
    // The names of CRI are SIGNAL_ and the signal's name; real-time ones are in the order of their numbers.
    let beyond = signal as i32 - CRI_REAL_TIME;
    if beyond >= 0 {
        return REAL_TIME.0 + beyond.unsigned_abs();
    }
    let name = signal.as_str_name().trim_start_matches("SIGNAL_");
    NAMED.iter().find(|(known, _)| *known == name).map_or(15, |(_, number)| *number)
}

/// CRI's name for a number; [`Signal::RuntimeDefault`] for one that has none.
fn of_number(number: u32) -> Signal {
    let real_time = i32::try_from(number).unwrap_or(0) - 34;
    if (0..=30).contains(&real_time) {
        return Signal::try_from(CRI_REAL_TIME + real_time).unwrap_or(Signal::RuntimeDefault);
    }
    let named = NAMED.iter().find(|(_, known)| *known == number);
    named.and_then(|(name, _)| Signal::from_str_name(&format!("SIGNAL_{name}"))).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cri: Signal, image: &str) -> Result<(u32, Signal), String> {
        let config = ContainerConfig { stop_signal: cri as i32, ..ContainerConfig::default() };
        let mut of_image = ImageConfig::default();
        of_image.set_stop_signal((!image.is_empty()).then(|| image.into()));
        stop_signal(&config, &of_image).map(|s| (s.number, s.cri)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_config_wins_over_the_image() {
        assert_eq!(of(Signal::RuntimeDefault, ""), Ok((15, Signal::Sigterm)));
        assert_eq!(of(Signal::RuntimeDefault, "SIGQUIT"), Ok((3, Signal::Sigquit)));
        assert_eq!(of(Signal::Sigusr1, "SIGQUIT"), Ok((10, Signal::Sigusr1)));
        assert_eq!(of(Signal::Sigrtminplus3, ""), Ok((37, Signal::Sigrtminplus3)));
        assert_eq!(of(Signal::Sigrtmax, ""), Ok((64, Signal::Sigrtmax)));
    }

    #[test]
    fn images_name_signals_in_many_ways() {
        assert_eq!(of(Signal::RuntimeDefault, "int"), Ok((2, Signal::Sigint)));
        assert_eq!(of(Signal::RuntimeDefault, "9"), Ok((9, Signal::Sigkill)));
        assert_eq!(of(Signal::RuntimeDefault, "SIGRTMIN+3"), Ok((37, Signal::Sigrtminplus3)));
        assert_eq!(of(Signal::RuntimeDefault, "SIGRTMAX-14"), Ok((50, Signal::Sigrtmaxminus14)));
        for bad in ["SIGFOO", "0", "65", "SIGRTMIN+31", "SIGRTMIN-1"] {
            assert_eq!(of(Signal::RuntimeDefault, bad), Err(format!("stop signal {bad:?} is unknown")));
        }
    }

    #[test]
    fn every_signal_of_cri_has_a_number_and_goes_both_ways() {
        for value in 1..=65 {
            let signal = Signal::try_from(value).unwrap();
            assert_eq!(number(of_number(number(signal))), number(signal), "{signal:?}");
        }
    }
}
