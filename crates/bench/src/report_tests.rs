use super::*;

fn point() -> Point {
    Point {
        agents: 10,
        ranks: 20,
        connections: 10,
        heartbeats_per_second: 2.0,
        steps_per_second: Some(1.0),
        seconds: 5.0,
        welcomed: 10,
        welcomed_seconds: Some(0.1),
        formed_ranks: 20,
        formed_seconds: Some(0.2),
        generations: 1,
        connected: 10,
        due: 100,
        sent: 100,
        answered: 100,
        missed: 0,
        latency: Latency { p50_ms: 1.0, p90_ms: 2.0, p99_ms: 3.0, max_ms: 4.0 },
        lateness: Latency::default(),
        committed_steps: Some(5),
        waited_for_grants: 0,
        generator_cores: 0.1,
        coordinator_cores: Some(0.2),
        busiest_thread: Some(("loop".to_owned(), 0.1)),
        other_cores: 0.0,
        memory: Some(Memory::new(10_000, 11_000, 12_000, 13_000, 10)),
        generator_files: Some(30),
        coordinator_files: Some(40),
        errors: Errors::default(),
        limit: None,
    }
}

#[test]
fn the_cause_is_named_before_its_consequences() {
    let judge = |change: fn(&mut Point)| {
        let mut p = point();
        change(&mut p);
        p.judge(2)
    };
    assert_eq!(judge(|_| {}), None);
    assert_eq!(judge(|p| p.generator_cores = 0.99), None, "busy, and it holds");
    assert_eq!(judge(|p| p.latency.p99_ms = 1000.1), Some(Limit::Latency));
    assert_eq!(judge(|p| p.missed = 1), Some(Limit::Unanswered));
    assert_eq!(judge(|p| p.connected = 9), Some(Limit::Connections));
    assert_eq!(judge(|p| p.formed_seconds = None), Some(Limit::Generation));
    assert_eq!(judge(|p| p.welcomed = 9), Some(Limit::Joins));
    assert_eq!(
        judge(|p| {
            p.missed = 1;
            p.other_cores = 1.6;
        }),
        Some(Limit::MachineCpu)
    );
    assert_eq!(
        judge(|p| {
            p.missed = 1;
            p.busiest_thread = Some(("loop".to_owned(), 0.95));
        }),
        Some(Limit::CoordinatorThread { name: "loop".to_owned() })
    );
    assert_eq!(
        judge(|p| {
            p.missed = 1;
            p.generator_cores = 0.95;
        }),
        Some(Limit::GeneratorCpu)
    );
    let heartbeats_only = |p: &mut Point| {
        p.formed_seconds = None;
        p.steps_per_second = None;
    };
    assert_eq!(judge(heartbeats_only), None);
}

#[test]
fn a_report_reads_as_a_table_and_as_json() {
    let mut bad = Point { missed: 3, connected: 9, generations: 2, ..point() };
    bad.errors.add("broken", "reset by peer");
    bad.errors.add("broken", "another");
    bad.limit = bad.judge(2);
    let report = Report {
        cores: 2,
        file_limit: 20_000,
        points: vec![point(), bad],
        stopped: Some("10 agents do not hold".to_owned()),
    };
    let text = report.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].trim_start().starts_with("agents") && lines[1].len() == lines[2].len(), "{text}");
    for expected in
        ["does not hold: connections broke", "2 x broken, as: reset by peer", "2 generations", "stopped: 10"]
    {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["points"][0]["memory"]["per_agent_kib"], 100.0);
    assert_eq!(json["points"][1]["errors"]["broken"][0], 2);
    assert_eq!(json["points"][1]["limit"]["limit"], "connections");
}

#[test]
fn what_is_due_follows_from_the_rate() {
    assert_eq!(Point::due(2000, 5.0, 10.0), 100_000);
    assert_eq!(Point::due(3, 0.2, 10.0), 6);
}
