//! What is to be measured.

use crate::BenchError;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// HTTP/2 servers allow 200 streams a connection at least as hyper is set; half of it leaves room.
const MOST_AGENTS_A_CONNECTION: u32 = 100;
/// More ranks than any machine has devices.
const MOST_RANKS_AN_AGENT: u32 = 64;
/// Beyond this the loopback's ports would end.
const MOST_AGENTS: u32 = 28_000;

/// The whole of it; [`Options::default`] and change what differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Worker daemons to play; with `curve` the most that are tried.
    pub agents: u32,
    /// Rank processes of each.
    pub ranks_per_agent: u32,
    /// Heartbeats of one agent in a second; none: as the coordinator's welcome says.
    pub heartbeats_per_second: Option<f64>,
    /// What agents do besides.
    pub load: Load,
    /// How long is measured, after everybody has joined.
    pub measure: Duration,
    /// How long joining may take.
    pub patience: Duration,
    /// Double the agents until the coordinator does not hold.
    pub curve: bool,
    /// Agents that share a TCP connection; real workers have one each.
    pub agents_per_connection: u32,
    /// Whom to measure.
    pub target: Target,
    /// Folder of a certificate with the roles worker and operator, where that coordinator speaks TLS.
    pub tls: Option<PathBuf>,
}

/// What agents do besides sending heartbeats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// Nothing: workers without a job.
    Heartbeats,
    /// A job is submitted, one generation formed of all ranks, and every rank reports this many steps a second.
    Training {
        /// 0: a formed generation that reports nothing.
        steps_per_second: f64,
    },
}

/// Whom to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A coordinator of our own, fresh for every point.
    Own {
        /// The `mcl` executable.
        program: PathBuf,
    },
    /// One that runs on this machine. Where it has no job, one is submitted.
    Running {
        /// Its URL, on the loopback interface.
        url: String,
        /// Its process, to look at its CPU and memory.
        pid: Option<u32>,
    },
}

impl Default for Options {
    fn default() -> Self {
        Self {
            agents: 1000,
            ranks_per_agent: 1,
            heartbeats_per_second: None,
            load: Load::Training { steps_per_second: 1.0 },
            measure: Duration::from_secs(10),
            patience: Duration::from_secs(60),
            curve: false,
            agents_per_connection: 1,
            target: Target::Own { program: PathBuf::from("mcl") },
            tls: None,
        }
    }
}

impl Options {
    /// Whether they make sense.
    ///
    /// # Errors
    /// Names the first one that does not.
    pub fn check(&self) -> Result<(), BenchError> {
        within("agents", f64::from(self.agents), 1.0, f64::from(MOST_AGENTS))?;
        let (ranks, most) = (f64::from(self.ranks_per_agent), f64::from(MOST_RANKS_AN_AGENT));
        within("ranks-per-agent", ranks, 1.0, most)?;
        let (shared, most) = (f64::from(self.agents_per_connection), f64::from(MOST_AGENTS_A_CONNECTION));
        within("agents-per-connection", shared, 1.0, most)?;
        if let Some(hz) = self.heartbeats_per_second {
            within("hz", hz, 0.01, 100.0)?;
        }
        if let Load::Training { steps_per_second } = self.load {
            within("steps-per-second", steps_per_second, 0.0, 100.0)?;
        }
        within("seconds", self.measure.as_secs_f64(), 0.1, 600.0)?;
        within("patience", self.patience.as_secs_f64(), 0.1, 600.0)?;
        match &self.target {
            Target::Running { url, .. } => authority(url).map(drop),
            Target::Own { .. } => Ok(()),
        }
    }

    /// Ranks of `agents` agents.
    pub(crate) const fn ranks(&self, agents: u32) -> u32 {
        agents.saturating_mul(self.ranks_per_agent)
    }

    /// Files that the generator needs for `agents` agents.
    pub(crate) const fn connections(&self, agents: u32) -> u32 {
        agents.div_ceil(self.agents_per_connection)
    }
}

fn within(option: &'static str, found: f64, least: f64, most: f64) -> Result<(), BenchError> {
    // Also refuses what is not a number.
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(BenchError::Option { option, found, least, most })
}

/// host:port of a URL on this machine: a load test of somebody else's coordinator is an attack.
pub(crate) fn authority(url: &str) -> Result<String, BenchError> {
    let elsewhere = || BenchError::Elsewhere { url: url.to_owned() };
    // What scheme there is to be, whoever connects decides.
    let text = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let uri: http::Uri = text.parse().map_err(|_| elsewhere())?;
    let authority = uri.authority().ok_or_else(elsewhere)?;
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let local = host == "localhost" || address.is_ok_and(|a| a.to_canonical().is_loopback());
    let web = matches!(uri.scheme_str(), Some("http" | "https")) && authority.port().is_some();
    if local && web { Ok(authority.as_str().to_owned()) } else { Err(elsewhere()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_make_sense_and_nonsense_is_named() {
        assert!(Options::default().check().is_ok());
        let text = |options: Options| options.check().unwrap_err().to_string();
        assert_eq!(text(Options { agents: 0, ..Options::default() }), "--agents is 0, expected 1 to 28000");
        let hz = Some(f64::NAN);
        assert!(text(Options { heartbeats_per_second: hz, ..Options::default() }).contains("--hz is NaN"));
        let load = Load::Training { steps_per_second: -1.0 };
        assert!(text(Options { load, ..Options::default() }).contains("--steps-per-second is -1"));
        let measure = Duration::ZERO;
        assert!(text(Options { measure, ..Options::default() }).contains("--seconds"));
        assert!(text(Options { agents_per_connection: 101, ..Options::default() }).contains("1 to 100"));
    }

    #[test]
    fn only_this_machine_is_loaded() {
        for (url, expected) in [
            ("http://127.0.0.1:7070", "127.0.0.1:7070"),
            ("127.0.0.9:1", "127.0.0.9:1"),
            ("https://[::1]:7070", "[::1]:7070"),
            ("http://localhost:7070", "localhost:7070"),
        ] {
            assert_eq!(authority(url).unwrap(), expected);
        }
        for url in ["http://10.0.0.1:7070", "http://example.org:80", "ftp://127.0.0.1:1", "", "127.0.0.1"] {
            let text = authority(url).unwrap_err().to_string();
            assert!(text.contains("this machine"), "{text}");
        }
    }

    #[test]
    fn shared_connections_need_fewer_files() {
        let options = Options { agents_per_connection: 8, ranks_per_agent: 3, ..Options::default() };
        assert_eq!((options.connections(17), options.ranks(17)), (3, 51));
    }
}
