//! A network in memory: state as the kernel would hold it, failures on request.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Address, Error, Link, LinkChange, Mac, Neighbour, Network, Result, Route, VethEnd};

/// What one fake namespace holds.
#[derive(Debug, Default)]
pub struct State {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
    /// Errno with which calls of that verb (`add veth`, `add route`, `change link`, ...) fail.
    pub fail: HashMap<&'static str, i32>,
    next: u32,
}

/// One namespace of [`Fake::pair`]. Clones share their state.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    other: Option<Arc<Mutex<State>>>,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn check(&self, verb: &'static str, object: &str) -> Result<()> {
        match self.fail.get(verb) {
            Some(errno) => Err(error(verb, object, *errno)),
            None => Ok(()),
        }
    }

    fn add(&mut self, name: &str, kind: &str) -> Result<&mut Link> {
        if self.links.iter().any(|link| link.name == name) {
            return Err(error("add", name, libc::EEXIST));
        }
        self.next += 1;
        let mac = Some(Mac([2, 0, 0, 0, 0, self.next as u8]));
        self.links.push(Link {
            index: self.next,
            name: name.into(),
            kind: kind.into(),
            mac,
            mtu: 1500,
            ..Link::default()
        });
        let last = self.links.len() - 1;
        Ok(&mut self.links[last])
    }

    fn remove(&mut self, index: u32) -> Option<Link> {
        let at = self.links.iter().position(|link| link.index == index)?;
        self.addresses.retain(|address| address.link != index);
        self.routes.retain(|route| route.link != Some(index));
        self.neighbours.retain(|neighbour| neighbour.link != index);
        Some(self.links.remove(at))
    }

    fn find(&mut self, index: u32, verb: &'static str) -> Result<&mut Link> {
        let missing = || error(verb, &format!("link {index}"), libc::ENODEV);
        self.links.iter_mut().find(|link| link.index == index).ok_or_else(missing)
    }
}

fn error(verb: &'static str, object: &str, errno: i32) -> Error {
    Error { verb, object: object.to_owned(), source: io::Error::from_raw_os_error(errno) }
}

impl Fake {
    /// Two namespaces; a veth made in the first with a namespace for its peer has that peer in the second.
    pub fn pair() -> (Self, Self) {
        let (mut first, second) = (Self::default(), Self::default());
        first.other = Some(second.state.clone());
        (first, second)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// From now on calls of `verb` fail with `errno`.
    pub fn fail(&self, verb: &'static str, errno: i32) {
        self.state().fail.insert(verb, errno);
    }
}

impl Network for Fake {
    fn links(&mut self) -> Result<Vec<Link>> {
        let state = self.state();
        state.check("list links", "links")?;
        Ok(state.links.clone())
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let state = self.state();
        state.check("get link", name)?;
        Ok(state.links.iter().find(|link| link.name == name).cloned())
    }

    fn add_bridge(&mut self, name: &str, mtu: Option<u32>) -> Result<()> {
        let mut state = self.state();
        state.check("add bridge", name)?;
        let link = state.add(name, "bridge")?;
        link.mtu = mtu.unwrap_or(link.mtu);
        Ok(())
    }

    fn add_dummy(&mut self, name: &str) -> Result<()> {
        let mut state = self.state();
        state.check("add dummy", name)?;
        state.add(name, "dummy").map(drop)
    }

    fn add_veth(
        &mut self,
        end: VethEnd<'_>,
        peer: VethEnd<'_>,
        peer_netns: Option<BorrowedFd<'_>>,
        mtu: Option<u32>,
    ) -> Result<()> {
        self.state().check("add veth", end.name)?;
        let place = match (&self.other, peer_netns) {
            (Some(other), Some(_)) => other.clone(),
            _ => self.state.clone(),
        };
        let near = veth(&mut locked(&self.state), end, mtu)?;
        let far = match veth(&mut locked(&place), peer, mtu) {
            Ok(index) => index,
            Err(error) => {
                self.state().remove(near);
                return Err(error);
            }
        };
        locked(&place).find(far, "add")?.peer = Some(near);
        self.state().find(near, "add")?.peer = Some(far);
        Ok(())
    }

    fn delete_link(&mut self, index: u32) -> Result<bool> {
        self.state().check("delete link", "link")?;
        let Some(link) = self.state().remove(index) else { return Ok(false) };
        if let Some(peer) = link.peer {
            locked(self.other.as_ref().unwrap_or(&self.state)).remove(peer);
        }
        Ok(true)
    }

    fn change_link(&mut self, index: u32, change: LinkChange<'_>) -> Result<()> {
        let mut state = self.state();
        state.check("change link", "link")?;
        let link = state.find(index, "change")?;
        link.up = change.up.unwrap_or(link.up);
        link.mtu = change.mtu.unwrap_or(link.mtu);
        link.mac = change.mac.or(link.mac);
        link.promiscuous = change.promiscuous.unwrap_or(link.promiscuous);
        if let Some(master) = change.master {
            link.master = (master != 0).then_some(master);
        }
        for (field, new) in [(&mut link.name, change.name), (&mut link.alias, change.alias)] {
            if let Some(new) = new {
                new.clone_into(field);
            }
        }
        Ok(())
    }

    fn set_hairpin(&mut self, port: u32, on: bool) -> Result<()> {
        let mut state = self.state();
        state.check("set hairpin", "port")?;
        state.find(port, "set hairpin on")?.hairpin = on;
        Ok(())
    }

    fn addresses(&mut self) -> Result<Vec<Address>> {
        Ok(self.state().addresses.clone())
    }

    fn add_address(&mut self, address: Address) -> Result<()> {
        let mut state = self.state();
        state.check("add address", &address.net.to_string())?;
        state.find(address.link, "add")?;
        if state.addresses.contains(&address) {
            return Err(error("add", &address.net.to_string(), libc::EEXIST));
        }
        state.addresses.push(address);
        Ok(())
    }

    fn delete_address(&mut self, address: Address) -> Result<bool> {
        let mut state = self.state();
        state.check("delete address", &address.net.to_string())?;
        let before = state.addresses.len();
        state.addresses.retain(|other| *other != address);
        Ok(state.addresses.len() < before)
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        Ok(self.state().routes.clone())
    }

    fn add_route(&mut self, route: &Route) -> Result<()> {
        let mut state = self.state();
        state.check("add route", &route.destination.to_string())?;
        if state.routes.contains(route) {
            return Err(error("add", &route.destination.to_string(), libc::EEXIST));
        }
        state.routes.push(route.clone());
        Ok(())
    }

    fn delete_route(&mut self, route: &Route) -> Result<bool> {
        let mut state = self.state();
        state.check("delete route", &route.destination.to_string())?;
        let before = state.routes.len();
        state.routes.retain(|other| other != route);
        Ok(state.routes.len() < before)
    }

    fn neighbours(&mut self) -> Result<Vec<Neighbour>> {
        Ok(self.state().neighbours.clone())
    }

    fn add_neighbour(&mut self, neighbour: Neighbour) -> Result<()> {
        self.state().neighbours.push(neighbour);
        Ok(())
    }

    fn delete_neighbour(&mut self, neighbour: Neighbour) -> Result<bool> {
        let mut state = self.state();
        let before = state.neighbours.len();
        state.neighbours.retain(|other| *other != neighbour);
        Ok(state.neighbours.len() < before)
    }
}

fn veth(state: &mut State, end: VethEnd<'_>, mtu: Option<u32>) -> Result<u32> {
    let link = state.add(end.name, "veth")?;
    link.mac = end.mac.or(link.mac);
    link.mtu = mtu.unwrap_or(link.mtu);
    link.master = end.master;
    Ok(link.index)
}
