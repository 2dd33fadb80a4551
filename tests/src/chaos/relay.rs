//! A TCP relay between a worker and the coordinator that can be cut, stalled and made late.
//!
//! It stands between the two in every campaign, so that the faults of this connection need no rights. Left out: loss of
//! single packets, which TCP hides anyway.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often a pump that has nothing to do looks at what it is told.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Condition {
    stalled: AtomicBool,
    cut: AtomicBool,
    late_ms: AtomicU64,
    over: AtomicBool,
}

impl Condition {
    fn is(flag: &AtomicBool) -> bool {
        flag.load(Ordering::SeqCst)
    }
}

/// One relay; it ends when it is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    address: SocketAddr,
    condition: Arc<Condition>,
}

impl Relay {
    /// Listens at an address and passes on to another one.
    pub(super) fn start(at: IpAddr, to: SocketAddr) -> Self {
        let address = crate::cluster::free_port(at);
        let listener = TcpListener::bind(address).unwrap();
        let condition = Arc::new(Condition::default());
        let shared = Arc::clone(&condition);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if Condition::is(&shared.over) {
                    return;
                }
                if !Condition::is(&shared.cut)
                    && let Ok(far) = TcpStream::connect_timeout(&to, Duration::from_secs(2))
                {
                    couple(&near, &far, &shared);
                }
            }
        });
        Self { address, condition }
    }

    /// Where the worker finds it.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends all connections and takes no new ones, or takes them again.
    pub(super) fn cut(&self, yes: bool) {
        self.condition.cut.store(yes, Ordering::SeqCst);
    }

    /// Passes nothing on and ends no connection, or passes on again.
    pub(super) fn stall(&self, yes: bool) {
        self.condition.stalled.store(yes, Ordering::SeqCst);
    }

    /// Everything comes so much late.
    pub(super) fn late(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap();
        self.condition.late_ms.store(ms, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.condition.over.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(200));
    }
}

fn couple(near: &TcpStream, far: &TcpStream, condition: &Arc<Condition>) {
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    for (from, to) in [(near, far), (far, near)] {
        let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
        let condition = Arc::clone(condition);
        std::thread::spawn(move || {
            pump(&from, &to, &condition);
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        });
    }
}

/// Passes bytes on until one side ends or the relay is cut.
fn pump(mut from: &TcpStream, mut to: &TcpStream, condition: &Condition) {
    let _ = from.set_read_timeout(Some(LOOK));
    let mut buffer = vec![0_u8; 1 << 16];
    loop {
        if Condition::is(&condition.cut) || Condition::is(&condition.over) {
            return;
        }
        if Condition::is(&condition.stalled) {
            std::thread::sleep(LOOK);
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                std::thread::sleep(Duration::from_millis(condition.late_ms.load(Ordering::SeqCst)));
                while Condition::is(&condition.stalled) && !Condition::is(&condition.cut) {
                    std::thread::sleep(LOOK);
                }
                if to.write_all(&buffer[..n]).is_err() {
                    return;
                }
            }
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Instant;

    #[test]
    fn it_passes_on_stalls_and_cuts() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::start(IpAddr::V4(Ipv4Addr::LOCALHOST), server.local_addr().unwrap());
        let mut client = TcpStream::connect(relay.address).unwrap();
        let (mut far, _) = server.accept().unwrap();
        let mut byte = [0_u8];
        client.write_all(b"a").unwrap();
        far.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"a");
        relay.stall(true);
        client.write_all(b"b").unwrap();
        far.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        // One read may have been under way when it was stalled; what it holds is kept back too.
        assert!(far.read_exact(&mut byte).is_err());
        relay.stall(false);
        far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        far.read_exact(&mut byte).unwrap();
        relay.cut(true);
        let begun = Instant::now();
        assert!(matches!(far.read(&mut byte), Ok(0) | Err(_)));
        assert!(begun.elapsed() < Duration::from_secs(4));
    }
}
