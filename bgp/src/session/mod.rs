//! One peer's session (RFC 4271 section 8) as a value: inputs go in, outputs come out, and the caller owns sockets and
//! timers.
//!
//! Both sides may connect at once; until one connection is established each is followed by itself ([`Side`]), and
//! section 6.8 says which of two stays. Graceful restart (RFC 4724, 8538) is decided here as far as it concerns how a
//! session ends; which routes stay is [`crate::rib`]'s.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::message::notification::{
    BAD_IDENTIFIER, BAD_PEER_AS, BFD_DOWN, COLLISION, HARD_RESET, HOLD_TIMER_EXPIRED, REJECTED,
    UNEXPECTED_IN_ESTABLISHED, UNEXPECTED_IN_OPEN_CONFIRM, UNEXPECTED_IN_OPEN_SENT, UNSUPPORTED_CAPABILITY,
};
use crate::message::update::Update;
use crate::message::{Capabilities, Dialect, GracefulRestart, Message, Notification, Open};
use crate::prefix::Family;

/// The hold time until an OPEN came (RFC 4271 section 8.2.2, OpenSent).
const OPEN_HOLD: Duration = Duration::from_secs(240);
/// The first wait after an error; it doubles up to the last (section 8.1.1, IdleHoldTimer).
const IDLE_HOLD: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(32)];
/// The wait after a peer told too much: each try has its routes come and go (RFC 4486 section 5, BIRD's longest wait).
const LIMIT_HOLD: Duration = Duration::from_secs(300);

/// What this side says and expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub local_as: u32,
    pub identifier: Ipv4Addr,
    pub peer_as: u32,
    /// Seconds; 0 is without keepalives.
    pub hold_time: u16,
    /// Between keepalives; a third of the hold time where it is not given.
    pub keepalive: Option<Duration>,
    pub connect_retry: Duration,
    /// Wait for the peer to connect.
    pub passive: bool,
    pub families: Vec<Family>,
    pub extended_next_hop: bool,
    /// For how many seconds the peer shall keep our routes while we restart; none is without graceful restart.
    pub restart_time: Option<u16>,
}

/// Who began a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    Outgoing,
    Incoming,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Outgoing => Self::Incoming,
            Self::Incoming => Self::Outgoing,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    ConnectRetry,
    IdleHold,
    Hold(Side),
    Keepalive(Side),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Start,
    /// The administrator ends the session, for this reason.
    Stop(Notification),
    Connected(Side),
    /// The connection that was asked for did not come.
    ConnectFailed(String),
    /// A message, or what is wrong with it.
    Received(Side, Result<Message, Notification>),
    /// The peer closed the connection, or it broke.
    Closed(Side),
    Expired(Timer),
    /// BFD lost the peer. `independent`: its forwarding does not share the fate of its control plane (C bit).
    BfdDown {
        independent: bool,
    },
    /// The peer told more than so many prefixes of the family.
    TooManyPrefixes(Family, u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Connect,
    /// The connection just offered becomes this side's.
    Accept(Side),
    /// The connection just offered is told why not, and closed.
    Refuse(Notification),
    Send(Side, Message),
    /// What was sent is to be delivered first.
    Close(Side),
    Start(Timer, Duration),
    Cancel(Timer),
    Up(Side, Box<Negotiated>),
    Update(Update),
    /// The peer wants our routes anew.
    Refresh(Family),
    Down(Down),
}

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    pub peer_as: u32,
    pub identifier: Ipv4Addr,
    pub hold_time: u16,
    pub families: Vec<Family>,
    pub dialect: Dialect,
    pub route_refresh: bool,
    /// The peer's graceful restart, where both do it.
    pub restart: Option<GracefulRestart>,
}

/// The end of an established session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    pub reason: Reason,
    /// The peer's routes stay for as long as it said (RFC 4724 section 4.2).
    pub graceful: bool,
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    Sent(Notification),
    Received(Notification),
    Closed,
    /// The peer connected anew while the session stood: it has restarted.
    Reconnected,
    ConnectFailed(String),
    Bfd,
}

impl Reason {
    /// Whether the two sides will not agree before somebody changes something.
    pub fn is_refusal(&self) -> bool {
        let passing = [COLLISION, REJECTED, HOLD_TIMER_EXPIRED];
        matches!(self, Self::Sent(told) | Self::Received(told) if !passing.contains(&told.kind()))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent(notification) => write!(f, "sent {notification}"),
            Self::Received(notification) => write!(f, "received {notification}"),
            Self::Closed => f.write_str("the peer closed the connection"),
            Self::Reconnected => f.write_str("the peer connected anew"),
            Self::ConnectFailed(words) => f.write_str(words),
            Self::Bfd => f.write_str("BFD lost the peer"),
        }
    }
}

/// The states as the operator knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum State {
    Idle,
    Connect,
    Active,
    OpenSent,
    OpenConfirm,
    Established,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Connection {
    state: State,
    negotiated: Option<Box<Negotiated>>,
}

#[derive(Debug, Clone)]
pub struct Session {
    settings: Settings,
    /// Idle, Connect or Active: what there is beside connections.
    waiting: State,
    connections: [Option<Connection>; 2],
    idle_hold: Duration,
    /// This speaker has restarted and not yet learned all routes.
    restarting: bool,
    /// Packets were and are forwarded by the routes that the peer may know.
    preserved: bool,
    error: Option<Reason>,
}

impl Session {
    /// `restarting`: the kernel still has the routes of a predecessor.
    pub fn new(settings: Settings, restarting: bool) -> Self {
        Self {
            settings,
            waiting: State::Idle,
            connections: [None, None],
            idle_hold: IDLE_HOLD[0],
            restarting,
            preserved: restarting,
            error: None,
        }
    }

    /// The table is complete: the next OPEN does not say that this speaker has just restarted.
    pub fn restarted(&mut self) {
        self.restarting = false;
        self.preserved = true;
    }

    pub fn state(&self) -> State {
        self.connections.iter().flatten().map(|connection| connection.state).max().unwrap_or(self.waiting)
    }

    /// Why a connection ended or did not come about, once for each.
    pub fn take_error(&mut self) -> Option<Reason> {
        self.error.take()
    }

    /// How a connection's bytes are read.
    pub fn dialect(&self, side: Side) -> Dialect {
        let connection = self.connections[side as usize].as_ref();
        connection.and_then(|connection| connection.negotiated.as_ref()).map_or(Dialect::BEFORE, |n| n.dialect)
    }

    pub fn handle(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Start => self.start(&mut out),
            Input::Stop(notification) => self.stop(&notification, &mut out),
            Input::Connected(side) => self.connected(side, &mut out),
            Input::ConnectFailed(words) if self.connections.iter().all(Option::is_none) => {
                self.error = Some(Reason::ConnectFailed(words));
                if self.waiting == State::Connect {
                    self.waiting = State::Active;
                }
            }
            // The peer has connected meanwhile.
            Input::ConnectFailed(_) => {}
            Input::Received(side, message) => self.received(side, message, &mut out),
            Input::Closed(side) => self.lose(side, Reason::Closed, &mut out),
            Input::Expired(timer) => self.expired(timer, &mut out),
            Input::BfdDown { independent } => self.bfd_down(independent, &mut out),
            Input::TooManyPrefixes(family, bound) => self.too_many_prefixes(family, bound, &mut out),
        }
        out
    }

    fn start(&mut self, out: &mut Vec<Output>) {
        if self.waiting != State::Idle {
            return;
        }
        out.push(Output::Cancel(Timer::IdleHold));
        self.waiting = if self.settings.passive { State::Active } else { State::Connect };
        if !self.settings.passive {
            out.push(Output::Connect);
            out.push(Output::Start(Timer::ConnectRetry, self.settings.connect_retry));
        }
    }

    fn stop(&mut self, notification: &Notification, out: &mut Vec<Output>) {
        for side in [Side::Outgoing, Side::Incoming] {
            if self.connections[side as usize].is_some() {
                let told =
                    if self.notifies_gracefully(side) { notification.clone().hard() } else { notification.clone() };
                self.end(side, Some(told.clone()), Reason::Sent(told), false, out);
            }
        }
        self.waiting = State::Idle;
        out.extend([Output::Cancel(Timer::ConnectRetry), Output::Cancel(Timer::IdleHold)]);
    }

    fn connected(&mut self, side: Side, out: &mut Vec<Output>) {
        let refusal = match (&self.connections[side as usize], self.established()) {
            _ if self.waiting == State::Idle => Some(REJECTED),
            (_, Some(old)) if side == Side::Incoming && self.restart_of(old).is_some() => {
                // RFC 4724 section 5: the peer has restarted and this side has not noticed.
                self.end(old, None, Reason::Reconnected, true, out);
                None
            }
            (_, Some(_)) => Some(COLLISION),
            // The older of two from the peer is one that it has given up.
            (Some(_), None) => {
                self.end(side, Some(Notification::new(COLLISION)), Reason::Reconnected, false, out);
                None
            }
            (None, None) => None,
        };
        if let Some(kind) = refusal {
            out.push(Output::Refuse(Notification::new(kind)));
            return;
        }
        out.push(Output::Accept(side));
        self.connections[side as usize] = Some(Connection { state: State::OpenSent, negotiated: None });
        out.push(Output::Send(side, Message::Open(self.open())));
        out.push(Output::Start(Timer::Hold(side), OPEN_HOLD));
    }

    /// The OPEN that this side sends.
    fn open(&self) -> Open {
        let settings = &self.settings;
        let families = settings.families.clone();
        let capabilities = Capabilities {
            route_refresh: true,
            extended_next_hop: settings.extended_next_hop,
            extended_message: true,
            graceful_restart: settings.restart_time.map(|time| GracefulRestart {
                restarting: self.restarting,
                notifications: true,
                time,
                families: families.iter().map(|family| (*family, self.preserved)).collect(),
            }),
            families,
            four_octet_as: None,
        };
        Open::new(settings.local_as, settings.hold_time, settings.identifier, capabilities)
    }

    fn received(&mut self, side: Side, message: Result<Message, Notification>, out: &mut Vec<Output>) {
        // What was under way when a connection was ended by this side.
        let Some(connection) = &self.connections[side as usize] else { return };
        match (connection.state, message) {
            (_, Err(told)) => self.fail(side, told, out),
            (_, Ok(Message::Notification(notification))) => self.lose(side, Reason::Received(notification), out),
            (State::OpenSent, Ok(Message::Open(open))) => self.opened(side, &open, out),
            (State::OpenConfirm, Ok(Message::Keepalive)) => self.establish(side, out),
            (State::Established, Ok(message)) => self.in_session(side, message, out),
            (state, Ok(message)) => {
                let kind = match state {
                    State::OpenSent => UNEXPECTED_IN_OPEN_SENT,
                    _ => UNEXPECTED_IN_OPEN_CONFIRM,
                };
                self.fail(side, Notification::with(kind, [message.kind()]), out);
            }
        }
    }

    fn in_session(&mut self, side: Side, message: Message, out: &mut Vec<Output>) {
        let hold_time =
            self.connections[side as usize].as_ref().and_then(|c| c.negotiated.as_ref()).map_or(0, |n| n.hold_time);
        if hold_time > 0 {
            out.push(Output::Start(Timer::Hold(side), Duration::from_secs(hold_time.into())));
        }
        match message {
            Message::Update(update) => out.push(Output::Update(update)),
            Message::RouteRefresh(family) => out.push(Output::Refresh(family)),
            Message::Keepalive | Message::OtherRefresh | Message::Notification(_) => {}
            Message::Open(_) => {
                self.fail(side, Notification::with(UNEXPECTED_IN_ESTABLISHED, [message.kind()]), out);
            }
        }
    }

    fn opened(&mut self, side: Side, open: &Open, out: &mut Vec<Output>) {
        let negotiated = match negotiate(&self.settings, open) {
            Ok(negotiated) => negotiated,
            Err(told) => return self.fail(side, told, out),
        };
        let other = self.connections[side.other() as usize].as_ref().map(|connection| connection.state);
        if other == Some(State::OpenConfirm) {
            let loser = if self.keeps(open) == side { side.other() } else { side };
            self.end(loser, Some(Notification::new(COLLISION)), Reason::Closed, false, out);
            if loser == side {
                return;
            }
        }
        let hold_time = negotiated.hold_time;
        self.connections[side as usize] =
            Some(Connection { state: State::OpenConfirm, negotiated: Some(Box::new(negotiated)) });
        out.push(Output::Send(side, Message::Keepalive));
        if hold_time == 0 {
            out.push(Output::Cancel(Timer::Hold(side)));
        } else {
            out.push(Output::Start(Timer::Hold(side), Duration::from_secs(hold_time.into())));
            out.push(Output::Start(Timer::Keepalive(side), self.keepalive(hold_time)));
        }
    }

    /// Which of two connections stays: the one begun by the higher identifier, or AS where they are equal (RFC 6286).
    fn keeps(&self, open: &Open) -> Side {
        let ours = (u32::from(self.settings.identifier), self.settings.local_as);
        if ours > (u32::from(open.identifier), open.asn()) { Side::Outgoing } else { Side::Incoming }
    }

    fn keepalive(&self, hold_time: u16) -> Duration {
        let third = Duration::from_secs(hold_time.into()) / 3;
        self.settings.keepalive.map_or(third, |asked| asked.min(third))
    }

    fn establish(&mut self, side: Side, out: &mut Vec<Output>) {
        if self.connections[side.other() as usize].is_some() {
            self.end(side.other(), Some(Notification::new(COLLISION)), Reason::Closed, false, out);
        }
        let Some(Connection { state, negotiated: Some(negotiated) }) = &mut self.connections[side as usize] else {
            return;
        };
        *state = State::Established;
        let negotiated = negotiated.clone();
        if negotiated.hold_time > 0 {
            out.push(Output::Start(Timer::Hold(side), Duration::from_secs(negotiated.hold_time.into())));
        }
        out.push(Output::Cancel(Timer::ConnectRetry));
        out.push(Output::Up(side, negotiated));
    }

    fn expired(&mut self, timer: Timer, out: &mut Vec<Output>) {
        match timer {
            Timer::IdleHold => self.start(out),
            Timer::ConnectRetry => {
                if self.waiting != State::Idle && self.connections.iter().all(Option::is_none) && !self.settings.passive
                {
                    self.waiting = State::Connect;
                    out.push(Output::Connect);
                    out.push(Output::Start(Timer::ConnectRetry, self.settings.connect_retry));
                }
            }
            Timer::Hold(side) => self.fail(side, Notification::new(HOLD_TIMER_EXPIRED), out),
            Timer::Keepalive(side) => {
                let Some(Connection { negotiated: Some(negotiated), .. }) = &self.connections[side as usize] else {
                    return;
                };
                out.push(Output::Send(side, Message::Keepalive));
                out.push(Output::Start(Timer::Keepalive(side), self.keepalive(negotiated.hold_time)));
            }
        }
    }

    /// A C bit that is clear says that the peer's BFD may have gone with its control plane alone, and then its routes are
    /// kept as in any restart (RFC 5882 section 4.3.2). A NOTIFICATION would undo that where the peer lacks RFC 8538.
    fn bfd_down(&mut self, independent: bool, out: &mut Vec<Output>) {
        let Some(side) = self.established() else { return };
        let graceful = !independent && self.restart_of(side).is_some();
        let told = Notification::new(BFD_DOWN);
        let told = match (graceful, self.notifies_gracefully(side)) {
            (true, false) => None,
            (false, true) => Some(told.hard()),
            _ => Some(told),
        };
        self.end(side, told, Reason::Bfd, graceful, out);
        self.resume(true, out);
    }

    /// A peer that helps with a restart shall not keep routes of a session that ends by what it told itself (RFC 8538
    /// section 3.1).
    fn too_many_prefixes(&mut self, family: Family, bound: u32, out: &mut Vec<Output>) {
        let Some(side) = self.established() else { return };
        let reason = Notification::maximum_prefixes(family, bound);
        let told = if self.notifies_gracefully(side) { reason.clone().hard() } else { reason.clone() };
        self.end(side, Some(told), Reason::Sent(reason), false, out);
        self.waiting = State::Idle;
        out.extend([Output::Cancel(Timer::ConnectRetry), Output::Start(Timer::IdleHold, LIMIT_HOLD)]);
    }

    fn established(&self) -> Option<Side> {
        let established = |side: &Side| {
            self.connections[*side as usize].as_ref().is_some_and(|connection| connection.state == State::Established)
        };
        [Side::Outgoing, Side::Incoming].into_iter().find(established)
    }

    /// The peer's graceful restart on this connection.
    fn restart_of(&self, side: Side) -> Option<&GracefulRestart> {
        self.connections[side as usize].as_ref()?.negotiated.as_ref()?.restart.as_ref()
    }

    /// Whether a NOTIFICATION leaves routes where they are (RFC 8538).
    fn notifies_gracefully(&self, side: Side) -> bool {
        self.restart_of(side).is_some_and(|restart| restart.notifications)
    }

    /// This side ends a connection because of an error.
    fn fail(&mut self, side: Side, told: Notification, out: &mut Vec<Output>) {
        let graceful = self.notifies_gracefully(side);
        self.end(side, Some(told.clone()), Reason::Sent(told), graceful, out);
        self.resume(true, out);
    }

    /// The other side has ended a connection.
    fn lose(&mut self, side: Side, reason: Reason, out: &mut Vec<Output>) {
        let Some(connection) = &self.connections[side as usize] else { return };
        let graceful = match &reason {
            Reason::Received(notification) => notification.kind() != HARD_RESET && self.notifies_gracefully(side),
            _ => self.restart_of(side).is_some(),
        };
        let erred = match &reason {
            Reason::Received(notification) => notification.kind() != COLLISION,
            _ => connection.state < State::Established,
        };
        let refused = matches!(&reason, Reason::Received(notification) if notification.kind() == REJECTED);
        self.end(side, None, reason, graceful, out);
        match refused {
            true => self.listen(out),
            false => self.resume(erred, out),
        }
    }

    /// The peer waits after an error and will connect when it has done. Were this side to wait in its turn, refusing the
    /// peer then, the two might never meet.
    fn listen(&mut self, out: &mut Vec<Output>) {
        if self.connections.iter().any(Option::is_some) || self.waiting == State::Idle {
            return;
        }
        self.waiting = State::Active;
        out.push(Output::Start(Timer::ConnectRetry, self.settings.connect_retry));
    }

    /// Forgets a connection and says so.
    fn end(&mut self, side: Side, told: Option<Notification>, reason: Reason, graceful: bool, out: &mut Vec<Output>) {
        let Some(connection) = self.connections[side as usize].take() else { return };
        out.extend(told.map(|notification| Output::Send(side, Message::Notification(notification))));
        out.push(Output::Close(side));
        out.push(Output::Cancel(Timer::Hold(side)));
        out.push(Output::Cancel(Timer::Keepalive(side)));
        if connection.state == State::Established {
            self.idle_hold = IDLE_HOLD[0];
            out.push(Output::Down(Down { reason: reason.clone(), graceful }));
        }
        self.error = Some(reason);
    }

    /// Tries again, after a while where there was an error.
    fn resume(&mut self, erred: bool, out: &mut Vec<Output>) {
        if self.connections.iter().any(Option::is_some) || self.waiting == State::Idle {
            return;
        }
        self.waiting = State::Idle;
        out.push(Output::Cancel(Timer::ConnectRetry));
        if erred {
            out.push(Output::Start(Timer::IdleHold, self.idle_hold));
            self.idle_hold = (self.idle_hold * 2).min(IDLE_HOLD[1]);
        } else {
            self.start(out);
        }
    }
}

/// # Errors
/// What to tell a peer that this side will not speak with.
fn negotiate(settings: &Settings, open: &Open) -> Result<Negotiated, Notification> {
    if open.asn() != settings.peer_as {
        return Err(Notification::with(BAD_PEER_AS, open.asn().to_be_bytes()));
    }
    let external = settings.peer_as != settings.local_as;
    if !external && open.identifier == settings.identifier {
        return Err(Notification::with(BAD_IDENTIFIER, open.identifier.octets()));
    }
    let theirs = open.families();
    let families: Vec<Family> = settings.families.iter().filter(|family| theirs.contains(family)).copied().collect();
    if families.is_empty() {
        let wanted = Capabilities { families: settings.families.clone(), ..Capabilities::default() };
        return Err(Notification::with(UNSUPPORTED_CAPABILITY, wanted.encode()));
    }
    let capabilities = &open.capabilities;
    Ok(Negotiated {
        peer_as: open.asn(),
        identifier: open.identifier,
        hold_time: settings.hold_time.min(open.hold_time),
        families,
        dialect: Dialect {
            four_octet_as: capabilities.four_octet_as.is_some(),
            extended_next_hop: settings.extended_next_hop && capabilities.extended_next_hop,
            extended_message: capabilities.extended_message,
            external,
        },
        route_refresh: capabilities.route_refresh,
        restart: settings.restart_time.and_then(|_| capabilities.graceful_restart.clone()),
    })
}

#[cfg(test)]
mod tests;
