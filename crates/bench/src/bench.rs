//! The whole of a measurement: one point, or more and more agents.

use crate::BenchError;
use crate::machine;
use crate::options::{Options, Target};
use crate::point::measure;
use crate::report::{Limit, Point, Report};
use std::thread;
use tokio::sync::oneshot;

/// Agents of a curve.
const CURVE: [u32; 9] = [100, 200, 500, 1000, 2000, 4000, 8000, 16_000, 28_000];
/// Heartbeats of one agent in a second, where a curve is not given any.
const CURVE_RATE: f64 = 5.0;
/// After a curve: agents that speak rarely, to see how many connections hold.
const MANY: u32 = 10_000;
const RARELY: f64 = 0.2;

/// Measures a coordinator. The load comes from one thread of its own; dropping the future ends it.
///
/// # Errors
/// When the options make no sense, too few files may be open, or there is no coordinator to measure. What
/// agents meet is in the report.
pub async fn run(options: Options) -> Result<Report, BenchError> {
    options.check()?;
    let (mut answer, answered) = oneshot::channel();
    let generator = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let report = match runtime {
            Ok(runtime) => runtime.block_on(async {
                tokio::select! {
                    report = work(&options) => Some(report),
                    () = answer.closed() => None,
                }
            }),
            Err(e) => Some(Err(BenchError::Thread(e.to_string()))),
        };
        if let Some(report) = report {
            // Nobody waits for it any more.
            let _ = answer.send(report);
        }
    };
    let spawned = thread::Builder::new().name("mcl-bench".to_owned()).spawn(generator);
    spawned.map_err(|e| BenchError::Thread(e.to_string()))?;
    answered.await.map_err(|_| BenchError::Thread("it broke down".to_owned()))?
}

async fn work(options: &Options) -> Result<Report, BenchError> {
    let cores = thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    let file_limit = machine::most_connections();
    let mut report = Report { cores, file_limit, points: Vec::new(), stopped: None };
    if options.curve {
        curve(options, &mut report).await?;
    } else {
        report.points.push(measure(options, options.agents, options.heartbeats_per_second, cores).await?);
    }
    Ok(report)
}

async fn curve(options: &Options, report: &mut Report) -> Result<(), BenchError> {
    let rate = options.heartbeats_per_second.unwrap_or(CURVE_RATE);
    for agents in CURVE.into_iter().filter(|agents| *agents <= options.agents) {
        if let Some(reason) = too_many(options, agents, report.file_limit) {
            report.stopped = Some(reason);
            break;
        }
        let point = measure(options, agents, Some(rate), report.cores).await?;
        tracing::info!(agents, p99_ms = point.latency.p99_ms, held = point.limit.is_none(), "measured");
        report.stopped = stop(&point);
        report.points.push(point);
        if report.stopped.is_some() {
            break;
        }
    }
    if report.stopped.is_none() {
        report.stopped = Some(format!("more than {} agents were not asked for", options.agents));
    }
    let fresh = matches!(options.target, Target::Own { .. });
    if fresh && options.agents >= MANY && too_many(options, MANY, report.file_limit).is_none() {
        report.points.push(measure(options, MANY, Some(RARELY), report.cores).await?);
    }
    Ok(())
}

fn too_many(options: &Options, agents: u32, file_limit: u64) -> Option<String> {
    let needed = u64::from(options.connections(agents));
    (needed > file_limit).then(|| {
        format!(
            "{agents} agents need {needed} connections, a process here may hold {file_limit} (`ulimit -Hn`)"
        )
    })
}

fn stop(point: &Point) -> Option<String> {
    let because = |limit: &Limit| format!("{} agents do not hold: {limit}", point.agents);
    point.limit.as_ref().map(because)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nonsense_starts_nothing() {
        let error = run(Options { agents: 0, ..Options::default() }).await.unwrap_err();
        assert!(matches!(error, BenchError::Option { option: "agents", .. }));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let target = Target::Own { program: "/nowhere/mcl".into() };
        let error = run(Options { target, agents: 1, ..Options::default() }).await.unwrap_err();
        assert!(error.to_string().contains("cannot start /nowhere/mcl"), "{error}");
    }

    #[test]
    fn a_curve_ends_where_files_end() {
        let options = Options::default();
        assert_eq!(too_many(&options, 100, 100), None);
        assert!(too_many(&options, 200, 100).unwrap().contains("ulimit -Hn"));
        let shared = Options { agents_per_connection: 2, ..options };
        assert_eq!(too_many(&shared, 200, 100), None);
    }
}
