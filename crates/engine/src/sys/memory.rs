//! How much memory is left, as far as the system says: asked before a large block is taken, since a system that has promised too
//! much ends processes instead of refusing.

use std::fs;
use std::path::Path;

/// Bytes that can be had without anybody being ended for it: of the machine, and of this process's control group.
/// `None` if nobody says.
pub fn available() -> Option<u64> {
    let of_machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|told| parse_machine(&told));
    let of_group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|told| left_in_group(Path::new("/sys/fs/cgroup"), &told));
    match (of_machine, of_group) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// What `MemAvailable` says.
fn parse_machine(told: &str) -> Option<u64> {
    let line = told
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The least that is left in the control group (version 2) and those around it; page cache counts as free.
fn left_in_group(root: &Path, told: &str) -> Option<u64> {
    let path = told.lines().find_map(|line| line.strip_prefix("0::"))?;
    let group = root.join(path.trim_start_matches('/'));
    let number = |group: &Path, file| -> Option<u64> {
        fs::read_to_string(group.join(file))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    group
        .ancestors()
        .take_while(|group| group.starts_with(root))
        .filter_map(|group| {
            let most = number(group, "memory.max")?;
            let used = number(group, "memory.current")?;
            let cache = fs::read_to_string(group.join("memory.stat"))
                .ok()
                .and_then(|told| {
                    let line = told
                        .lines()
                        .find_map(|line| line.strip_prefix("inactive_file "))?;
                    line.trim().parse::<u64>().ok()
                });
            Some(most.saturating_sub(used.saturating_sub(cache.unwrap_or(0))))
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_understood() {
        let told = "MemTotal:       24689764 kB\nMemAvailable:   123 kB\nBuffers: 1 kB\n";
        assert_eq!(parse_machine(told), Some(123 * 1024));
        assert_eq!(parse_machine("MemTotal: 1 kB\n"), None);
        assert!(available().is_none_or(|left| left > 0));
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = std::env::temp_dir().join(format!("plait-groups-{}", std::process::id()));
        let inner = root.join("a/b");
        fs::create_dir_all(&inner).unwrap();
        for (group, most, used) in [("a", "1000", "300"), ("a/b", "max", "200")] {
            fs::write(root.join(group).join("memory.max"), most).unwrap();
            fs::write(root.join(group).join("memory.current"), used).unwrap();
        }
        fs::write(root.join("a/memory.stat"), "anon 1\ninactive_file 100\n").unwrap();
        assert_eq!(left_in_group(&root, "0::/a/b\n"), Some(800));
        assert_eq!(left_in_group(&root, "0::/c\n"), None);
        fs::remove_dir_all(&root).unwrap();
    }
}
