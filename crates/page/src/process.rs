//! What the kernel says of this process.

/// Parts of a second that the kernel counts in; Linux has had no other number for programs.
const TICKS_A_SECOND: f64 = 100.0;

/// Processor time so far.
pub(crate) fn cpu_seconds() -> Option<f64> {
    cpu_of(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

/// Memory in use.
pub(crate) fn resident_bytes() -> Option<u64> {
    resident_of(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn cpu_of(stat: &str) -> Option<f64> {
    // Fields 14 and 15, after a name that may hold anything.
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_A_SECOND)
}

fn resident_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let stat = "17 (a b) c) S 1 17 17 0 -1 4194560 900 0 0 0 250 50 0 0 20 0 1 0 5 1000 200 18446744073709551615";
        assert_eq!(cpu_of(stat), Some(3.0));
        assert_eq!(resident_of("Name:\tx\nVmRSS:\t  2048 kB\n"), Some(2 << 20));
        assert_eq!((cpu_of(""), resident_of("")), (None, None));
        assert!(cpu_seconds().is_some() && resident_bytes().is_some_and(|b| b > 1 << 20));
    }
}
