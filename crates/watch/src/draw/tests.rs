//! Buffers that are drawn.

use super::*;
use crate::scene;
use crate::view::{Event, Key, step};
use mcl_proto::v1;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

fn view(seen: Snapshot, size: (u16, u16)) -> View {
    let view = step(View::new(1000.0, true), Event::Size(size.0, size.1)).0;
    step(view, Event::Seen(Box::new(seen))).0
}

fn after(view: View, keys: &[Key]) -> View {
    keys.iter().fold(view, |view, key| step(view, Event::Key(*key)).0)
}

/// The terminal's lines, without blanks at their ends; and the terminal.
fn drawn(view: &View) -> (Vec<String>, Terminal<TestBackend>) {
    let mut terminal = Terminal::new(TestBackend::new(view.size.0, view.size.1)).unwrap();
    terminal.draw(|frame| draw(view, frame)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let line = |y: u16| {
        let cells = (0..buffer.area.width).map(|x| buffer[(x, y)].symbol());
        cells.collect::<String>().trim_end().to_owned()
    };
    ((0..buffer.area.height).map(line).collect(), terminal)
}

fn lines(view: &View) -> Vec<String> {
    drawn(view).0
}

#[test]
fn everything_is_on_80_by_24() {
    let lines = lines(&view(scene::training(3), (80, 24)));
    let all = lines.join("\n");
    assert!(lines[0].starts_with("r50  training  generation 2, term 1"), "{all}");
    assert!(lines[0].ends_with("http://127.0.0.1:7070"), "{all}");
    assert_eq!(lines[1], "generation 2: 3 ranks");
    assert_eq!(lines[2], "1 straggler: 2 on worker-002");
    // 128 steps of 0.2 s: 3800 left take 760 s.
    assert!(lines[3].ends_with("1200/5000 steps  24.0 %  epoch 3  ETA 12 m 40 s"), "{all}");
    assert!(lines[3].starts_with("███"), "{all}");
    assert!(lines[4].starts_with("─ loss 3.02") || lines[4].starts_with(" loss 3.02"), "{all}");
    for (number, value) in [
        ("level 0", "1.5012"),
        ("level 3", "0.5000"),
        ("lr", "0.0010"),
        ("momentum", "0.9960"),
        ("grad norm", "1.2500"),
        ("images/s", "512.0"),
        ("data wait", "5.0 %"),
    ] {
        let found = lines.iter().any(|l| l.contains(&format!("{number:<11}{value:>9}")));
        assert!(found, "{number} {value} is not in\n{all}");
    }
    assert!(all.contains("Ranks 3  Workers 3  Generations 2  Checkpoints 2  Queue 0"), "{all}");
    let at = lines.iter().position(|l| l.contains("worker/device")).unwrap();
    assert!(lines[at + 1].contains("2 worker-002/cuda:0") && lines[at + 1].ends_with("straggler"), "{all}");
    assert!(lines[at + 1].contains("200.0    10.0    80.0    100.0    20.0"), "{all}");
    assert!(lines[at + 2].contains("0 worker-000/cuda:0"), "{all}");
    assert!(lines[23].starts_with("q quit"), "{all}");
}

#[test]
fn the_loss_falls_from_the_upper_left_to_the_lower_right() {
    let view = view(scene::training(2), (100, 30));
    let (_, terminal) = drawn(&view);
    let buffer = terminal.backend().buffer();
    let braille = |x: u16, y: u16| buffer[(x, y)].symbol().chars().next().is_some_and(|c| c > '\u{2800}');
    let dots: Vec<(u16, u16)> =
        (0..30).flat_map(|y| (0..60).map(move |x| (x, y))).filter(|(x, y)| braille(*x, *y)).collect();
    let (first, last) = (dots.iter().min().unwrap(), dots.iter().max().unwrap());
    assert!(last.0 > first.0 + 30 && last.1 > first.1 + 3, "{first:?} {last:?}");
}

#[test]
fn lost_workers_are_named_and_stand_out() {
    let mut seen = scene::training(4);
    seen.status.workers[1].state = "lost".to_owned();
    seen.status.workers[1].silent_seconds = 12.0;
    seen.status.ranks.clear();
    seen.status.phase = "waiting".to_owned();
    seen.status.reason = "3 of 4 workers ready, worker-001 silent for 12.0 s".to_owned();
    let view = view(seen, (80, 24));
    let (lines, terminal) = drawn(&view);
    assert_eq!(lines[1], "3 of 4 workers ready, worker-001 silent for 12.0 s");
    assert_eq!(lines[2], "1 worker lost: worker-001");
    assert!(!lines[3].contains("ETA"), "{}", lines[3]);
    assert_eq!(terminal.backend().buffer()[(0, 2)].fg, Color::Red);
    let row = lines.iter().position(|l| l.ends_with("lost 12 s")).unwrap();
    assert!(lines[row - 1].contains("worker/device"));
    // Without colours nothing has one.
    let plain = View { colour: false, ..view };
    let (_, terminal) = drawn(&plain);
    let buffer = terminal.backend().buffer();
    assert!(buffer.content.iter().all(|c| c.fg == Color::Reset && c.bg == Color::Reset));
}

#[test]
fn a_thousand_workers_are_looked_through() {
    let seen = scene::training(1000);
    let view = view(seen, (80, 24));
    assert!(lines(&view).join("\n").contains("Ranks 1000"));
    let view = after(view, &[Key::End]);
    let last = lines(&view);
    assert!(last[22].contains("998 worker-998/cuda:0"), "{last:#?}");
    let typed: Vec<Key> = "/worker-123".chars().map(Key::Char).chain([Key::Enter]).collect();
    let view = after(view, &typed);
    let all = lines(&view).join("\n");
    assert!(all.contains("123 worker-123") && all.contains("filter: worker-123"), "{all}");
    assert!(!all.contains("worker-124"), "{all}");
}

#[test]
fn each_pane_has_its_rows() {
    let mut seen = scene::training(2);
    seen.status.queue = vec![v1::QueuedJob { run_id: "next".to_owned(), since: 940 }];
    seen.status.past_runs = vec![v1::PastRun {
        run_id: "before".to_owned(),
        outcome: "all 9 steps are committed".to_owned(),
        until: 400,
        phase: "done".to_owned(),
    }];
    let view = view(seen, (80, 24));
    for (key, row) in [
        ('2', "worker-000          training      0.2 s 0"),
        ('3', "    2    2 m       2      2       620     580 generation 1 ended: worker"),
        ('4', "        1000     40 s newest"),
        ('5', "     1 next"),
    ] {
        let view = after(view.clone(), &[Key::Char(key)]);
        let all = lines(&view).join("\n");
        assert!(all.contains(row), "`{row}` is not in\n{all}");
    }
    let all = lines(&after(view, &[Key::Char('5')])).join("\n");
    assert!(all.contains("waits for 1 m") && all.contains("10 m ago: all 9 steps are committed"), "{all}");
}

#[test]
fn help_confirmation_filter_and_notes_are_shown() {
    let view = view(scene::training(2), (80, 24));
    let help = lines(&after(view.clone(), &[Key::Char('?')])).join("\n");
    assert!(help.contains("drain: finish the step, checkpoint, stop"), "{help}");
    let sure = lines(&after(view.clone(), &[Key::Char('d')])).join("\n");
    assert!(sure.contains("drain r50?") && sure.contains("y: yes, any other key: no"), "{sure}");
    let typed = lines(&after(view.clone(), &[Key::Char('/'), Key::Char('x')]));
    assert_eq!(typed[23], "/x_  Enter: keep, Esc: clear");
    assert!(typed.join("\n").contains("nothing holds what is filtered for"));
    let told = step(view, Event::Told(Wish::Pause, Err("it is done".to_owned()))).0;
    assert_eq!(lines(&told)[23], "pause: it is done");
}

#[test]
fn a_coordinator_that_is_away_is_said_with_what_was_seen_last() {
    let view = view(scene::training(2), (80, 24));
    let view = step(view, Event::Away("connection refused".to_owned())).0;
    let view = step(view, Event::Clock(1075.0)).0;
    let lines = lines(&view);
    assert_eq!(lines[2], "the coordinator does not answer for 1 m 15 s, trying again: connection refused");
    assert!(lines[3].contains("1200/5000") && !lines[3].contains("ETA"), "{}", lines[3]);
}

#[test]
fn before_anything_is_seen_it_says_so() {
    let view = View::new(1000.0, true);
    let lines = lines(&view);
    assert!(lines[0].starts_with("no job  looking for it"), "{lines:#?}");
    assert!(lines.join("\n").contains("no step is committed yet"));
}

#[test]
fn every_size_is_drawn() {
    let mut seen = scene::training(30);
    seen.status.reason = "é漢字".repeat(50);
    for wide in [0, 1, 2, 5, 10, 20, 35, 40, 79, 80, 200, 400] {
        for high in [0, 1, 2, 3, 4, 7, 8, 12, 18, 19, 24, 100] {
            let view = view(seen.clone(), (wide, high));
            for key in ['1', '2', '3', '4', '5', '?', 'd', '/'] {
                drawn(&after(view.clone(), &[Key::Char(key), Key::Down]));
                drawn(&after(view.clone(), &[Key::Char(key)]));
            }
        }
    }
}

#[test]
fn numbers_that_are_none_are_drawn() {
    let mut seen = scene::training(2);
    for p in &mut seen.history.points {
        (p.loss, p.lr, p.grad_norm) = (None, Some(f64::NAN), Some(f64::INFINITY));
        p.loss_per_level = vec![f64::NEG_INFINITY];
    }
    seen.status.data_wait_share = f64::NAN;
    seen.status.committed_steps = u64::MAX;
    seen.history.steps_per_second = Some(f64::NAN);
    drawn(&view(seen.clone(), (80, 24)));
    seen.history.steps_per_second = Some(f64::MIN_POSITIVE);
    drawn(&view(seen, (80, 24)));
}
