//! The process's own TCP sockets, found and shut down from outside the engine.
//!
//! Gloo and the TCP store have no abort. Their blocked threads wake up when the far end of a connection is
//! gone, and shutting down the near end looks exactly like that, to both sides. The sockets are nowhere to be
//! asked for, so they are told by when they were opened: a baseline is taken before the engine opens any.

use nix::sys::socket::{Shutdown, SockaddrStorage, getpeername, getsockopt, shutdown, sockopt};
use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, RawFd};

/// Where a process finds its open files.
const OPEN_FILES: &str = "/proc/self/fd";

/// The sockets that were open at one moment.
#[derive(Debug)]
pub struct SocketBaseline {
    inodes: BTreeSet<u64>,
    spared_ports: Vec<u16>,
}

/// Open sockets: descriptor and inode.
fn open_sockets() -> std::io::Result<Vec<(RawFd, u64)>> {
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir(OPEN_FILES)?.flatten() {
        // Descriptors close while this reads; such an entry is passed over.
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy();
        let inode = target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']')?.parse().ok());
        let fd = entry.file_name().to_string_lossy().parse().ok();
        if let (Some(fd), Some(inode)) = (fd, inode) {
            sockets.push((fd, inode));
        }
    }
    Ok(sockets)
}

/// Whether peers connect to this socket; the engine ends the process when its listener fails.
fn listens(fd: RawFd) -> bool {
    // SAFETY: the descriptor is only read, by one system call, which answers EBADF where another thread has
    // closed it meanwhile; nothing here owns or closes it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    getsockopt(&borrowed, sockopt::AcceptConn).unwrap_or(true)
}

impl SocketBaseline {
    /// What is open now. Connections to `spared_ports` are left alone whenever they were opened.
    ///
    /// # Errors
    /// When the process cannot see its own descriptors.
    pub fn take(spared_ports: &[u16]) -> std::io::Result<Self> {
        let inodes = open_sockets()?.into_iter().map(|(_, inode)| inode).collect();
        Ok(Self { inodes, spared_ports: spared_ports.to_vec() })
    }

    /// Shuts down every connected TCP socket that was opened later, in both directions, without closing its
    /// descriptor; how many there were. One that is being opened at this moment may be missed: call again.
    ///
    /// # Errors
    /// When the process cannot see its own descriptors.
    pub fn shut_down_newer(&self) -> std::io::Result<usize> {
        let mut count = 0;
        for (fd, inode) in open_sockets()? {
            if self.inodes.contains(&inode) || listens(fd) {
                continue;
            }
            // Not connected, or closed since: there is nothing to wake up.
            let Ok(peer) = getpeername::<SockaddrStorage>(fd) else { continue };
            let port = peer
                .as_sockaddr_in()
                .map(|a| a.port())
                .or_else(|| peer.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port));
            let Some(port) = port else { continue };
            if !self.spared_ports.contains(&port) && shutdown(fd, Shutdown::Both).is_ok() {
                count += 1;
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn wakes_readers_of_newer_connections_only() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let spared = TcpListener::bind("127.0.0.1:0").unwrap();
        let old = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _far_old = listener.accept().unwrap();
        let ports = [spared.local_addr().unwrap().port()];
        let baseline = SocketBaseline::take(&ports).unwrap();
        let mut new = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _far_new = listener.accept().unwrap();
        let kept = TcpStream::connect(spared.local_addr().unwrap()).unwrap();
        let reader = std::thread::spawn(move || new.read(&mut [0; 8]));
        // Both ends of the new connection are this process's; the far end of the spared one is opened by
        // nobody before `accept`.
        assert_eq!(baseline.shut_down_newer().unwrap(), 2);
        assert_eq!(reader.join().unwrap().unwrap(), 0);
        for stream in [old, kept] {
            stream.set_nonblocking(true).unwrap();
            let error = (&stream).read(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        }
        assert!(TcpStream::connect(listener.local_addr().unwrap()).is_ok(), "the listener is shut");
    }
}
