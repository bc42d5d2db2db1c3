//! Options of TCP and UDP sockets that the standard library lacks: what BGP and BFD sessions guard themselves by.
//!
//! Source: tcp(7), ip(7), ipv6(7); RFC 2385 (MD5), 5082 (GTSM), 5881 section 5 (BFD's TTL).

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};

/// `IPV6_MINHOPCOUNT` of linux/in6.h.
const IPV6_MINHOPCOUNT: libc::c_int = 73;
/// The longest key that the kernel takes.
pub const MD5_KEY: usize = 80;

/// `struct tcp_md5sig` of linux/tcp.h.
#[repr(C)]
struct Md5Signature {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    interface: i32,
    key: [u8; MD5_KEY],
}

/// Segments from and to `peer` are signed with `key`; none where it is empty. On a listening socket it holds for the
/// connections that it takes.
///
/// # Errors
/// Where the kernel has no TCP MD5 signatures, or the key is longer than 80 bytes.
pub fn set_md5(socket: BorrowedFd<'_>, peer: IpAddr, key: &[u8]) -> io::Result<()> {
    if key.len() > MD5_KEY {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an MD5 key has at most 80 bytes"));
    }
    let mut padded = [0; MD5_KEY];
    padded[..key.len()].copy_from_slice(key);
    let signature = Md5Signature {
        address: storage(peer),
        flags: 0,
        prefix_length: 0,
        key_length: u16::try_from(key.len()).unwrap_or_default(),
        interface: 0,
        key: padded,
    };
    match set(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &signature) {
        // No key to remove.
        Err(error) if key.is_empty() && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// The TTL or hop limit of what is sent.
///
/// # Errors
/// Where the socket is none of IP.
pub fn set_ttl(socket: BorrowedFd<'_>, peer: IpAddr, ttl: u8) -> io::Result<()> {
    let ttl = libc::c_int::from(ttl);
    match peer {
        IpAddr::V4(_) => set(socket, libc::IPPROTO_IP, libc::IP_TTL, &ttl),
        IpAddr::V6(_) => set(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, &ttl),
    }
}

/// TCP segments that come with a lower TTL or hop limit are dropped.
///
/// # Errors
/// Where the socket is none of IP.
pub fn set_least_ttl(socket: BorrowedFd<'_>, peer: IpAddr, ttl: u8) -> io::Result<()> {
    let ttl = libc::c_int::from(ttl);
    match peer {
        IpAddr::V4(_) => set(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &ttl),
        IpAddr::V6(_) => set(socket, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, &ttl),
    }
}

/// An IPv6 socket takes IPv6 alone.
///
/// # Errors
/// Where the socket is bound already.
pub fn set_v6_only(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1_i32)
}

/// A UDP socket that does not block, bound to `address`; one of IPv6 takes IPv6 alone.
///
/// # Errors
/// Where the address is taken, or not this host's.
pub fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let made = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if address.is_ipv6() {
        set_v6_only(made.as_fd())?;
    }
    bind(made.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(made.into())
}

/// A raw socket of IPv4 or IPv6: what is sent is the payload of one IP protocol, also where the kernel does not know it;
/// what comes are whole packets of it with IPv4, and payloads with IPv6. Ports of addresses mean nothing.
///
/// # Errors
/// Where the caller may not.
pub fn raw(protocol: u8, six: bool) -> io::Result<UdpSocket> {
    let family = if six { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: socket(2) takes no memory of ours; nix does not know every protocol.
    let made = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(made) }.into())
}

/// Each datagram comes with its TTL or hop limit, for [`receive`].
///
/// # Errors
/// Where the socket is none of IP.
pub fn ask_for_ttl(socket: BorrowedFd<'_>, six: bool) -> io::Result<()> {
    match six {
        false => set(socket, libc::IPPROTO_IP, libc::IP_RECVTTL, &1_i32),
        true => set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, &1_i32),
    }
}

/// A datagram's length, sender, and TTL where the kernel told it.
///
/// # Errors
/// As recvmsg(2); `WouldBlock` where a socket that does not block has none.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, Option<u8>)> {
    // SAFETY: all three are plain data, for which zero is a value.
    let (mut address, mut message, mut control): (libc::sockaddr_storage, libc::msghdr, [u64; 16]) =
        unsafe { (zeroed(), zeroed(), zeroed()) };
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the message points to the buffers above, which outlive the call, with their true sizes.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let from = sender(&address).ok_or_else(|| io::Error::other("a datagram from no address of IP"))?;
    Ok((length, from, ttl(&message)))
}

fn ttl(message: &libc::msghdr) -> Option<u8> {
    // SAFETY: the kernel filled the control buffer and set its length, within which these macros stay.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let kind = ((*header).cmsg_level, (*header).cmsg_type);
            if matches!(kind, (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT)) {
                let value = libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned();
                return u8::try_from(value).ok();
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

fn sender(address: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(address.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is one, and the storage is large and aligned enough for any.
            let four = unsafe { &*(&raw const *address).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(four.sin_addr.s_addr));
            Some((ip, u16::from_be(four.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let six = unsafe { &*(&raw const *address).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(six.sin6_addr.s6_addr);
            Some(std::net::SocketAddrV6::new(ip, u16::from_be(six.sin6_port), 0, six.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn storage(address: IpAddr) -> libc::sockaddr_storage {
    // SAFETY: plain data, for which zero is a value.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    match address {
        IpAddr::V4(ip) => {
            // SAFETY: the storage is large and aligned enough for any address.
            let four = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in>() };
            four.sin_family = libc::AF_INET as libc::sa_family_t;
            four.sin_addr.s_addr = u32::from(ip).to_be();
        }
        IpAddr::V6(ip) => {
            // SAFETY: as above.
            let six = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in6>() };
            six.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            six.sin6_addr.s6_addr = ip.octets();
        }
    }
    storage
}

fn set<T>(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` lives through the call and is of the length that is given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const *value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn a_datagram_tells_its_ttl() {
        for (address, six) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
            let Ok(to) = UdpSocket::bind(address) else {
                eprintln!("SKIPPED a_datagram_tells_its_ttl: no {address} here");
                continue;
            };
            ask_for_ttl(to.as_fd(), six).unwrap();
            let from = UdpSocket::bind(address).unwrap();
            set_ttl(from.as_fd(), to.local_addr().unwrap().ip(), 255).unwrap();
            from.send_to(b"hello", to.local_addr().unwrap()).unwrap();
            let met = receive(to.as_fd(), &mut [0; 16]).unwrap();
            assert_eq!(met, (5, from.local_addr().unwrap(), Some(255)));
        }
    }

    #[test]
    fn segments_below_the_least_ttl_are_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut near, from) = listener.accept().unwrap();
        set_least_ttl(near.as_fd(), from.ip(), 255).unwrap();
        near.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        far.write_all(b"x").unwrap();
        assert_eq!(near.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        set_ttl(far.as_fd(), from.ip(), 255).unwrap();
        near.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(near.read(&mut [0; 1]).unwrap(), 1);
    }

    #[test]
    fn a_key_is_checked() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(set_md5(listener.as_fd(), peer, &[1; 81]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        match set_md5(listener.as_fd(), peer, b"secret") {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                eprintln!("SKIPPED a_key_is_checked: this kernel has no TCP MD5 signatures");
            }
            set => {
                set.unwrap();
                // A plain SYN meets no answer.
                let plain = TcpStream::connect_timeout(&listener.local_addr().unwrap(), Duration::from_millis(300));
                assert_eq!(plain.unwrap_err().kind(), io::ErrorKind::TimedOut);
                set_md5(listener.as_fd(), peer, b"").unwrap();
                TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            }
        }
    }
}
