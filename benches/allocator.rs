//! What an address costs (`make bench`): 1,000, 10,000 and 50,000 of them, out of an IPv4 pool and out of a sparse IPv6 pool, which is
//! a /64 with a hundred excluded ranges, and with every third of the first 150,000 addresses held already.
//!
//! The time for each address should not grow with their number but for a logarithm. Fails if a step takes a second or more.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::ExitCode,
    time::{Duration, Instant},
};

use l2lb::ipam::{AddressRange, Allocator, Family, Pool, PoolConfig, Use};

const SIZES: [u32; 3] = [1_000, 10_000, 50_000];
const LIMIT: Duration = Duration::from_secs(1);
/// Blocks of the IPv6 pool that are excluded, and the size of each.
const BLOCKS: u32 = 100;
const BLOCK: u32 = 16;
const HELD_BELOW: u32 = 150_000;

fn main() -> ExitCode {
    println!("{:<12} {:>9} {:>22} {:>22} {:>22}", "pool", "addresses", "allocate", "release and allocate", "adopt");
    let mut slow = false;
    for (name, family, make) in
        [("IPv4", Family::V4, ipv4 as fn() -> Allocator), ("sparse IPv6", Family::V6, ipv6 as fn() -> Allocator)]
    {
        for size in SIZES {
            let [allocated, churned, adopted] = run(family, size, make);
            println!(
                "{name:<12} {size:>9} {} {} {}",
                shown(allocated, size),
                shown(churned, size),
                shown(adopted, size)
            );
            slow |= allocated >= LIMIT || churned >= LIMIT || adopted >= LIMIT;
        }
    }
    if slow {
        eprintln!("an allocator of 50,000 addresses is to need less than {} s for each step", LIMIT.as_secs());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Hands out `size` addresses; then takes each of them back, in no order, and hands out another one; then a second allocator is told
/// of all of them, as after a restart.
fn run(family: Family, size: u32, make: fn() -> Allocator) -> [Duration; 3] {
    let mut allocator = make();
    let pools = ["bench".to_owned()];
    let wanted = Use { ports: [("TCP".to_owned(), 80)].into_iter().collect(), ..Use::default() };
    let users: Vec<String> = (0..size).map(|number| format!("default/service-{number}")).collect();
    let mut now = Duration::ZERO;

    let mut held = Vec::with_capacity(users.len());
    let start = Instant::now();
    for user in &users {
        // A pool that is too small would be an error of this benchmark.
        match allocator.allocate(user, &wanted, family, &pools, now) {
            Ok(allocated) => held.push(allocated.address()),
            Err(error) => eprintln!("{error}"),
        }
    }
    let allocated = start.elapsed();

    let start = Instant::now();
    for step in 0..users.len() {
        // A prime that divides none of the sizes: each of them once.
        let at = step * 7_919 % users.len();
        // Ten releases each second: at any time three thousand addresses rest.
        now += Duration::from_millis(100);
        allocator.release(held[at], &users[at], now);
        if let Ok(allocated) = allocator.allocate(&users[at], &wanted, family, &pools, now) {
            held[at] = allocated.address();
        }
    }
    let churned = start.elapsed();

    let mut second = make();
    let start = Instant::now();
    for (user, address) in users.iter().zip(&held) {
        second.adopt(*address, user, "bench");
    }
    [allocated, churned, start.elapsed()]
}

fn ipv4() -> Allocator {
    let first = IpAddr::from(Ipv4Addr::new(10, 0, 0, 10));
    allocator("10.0.0.0/14", vec![AddressRange::single(first)])
}

fn ipv6() -> Allocator {
    let base = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0).to_bits();
    let address = |offset: u32| Ipv6Addr::from_bits(base + u128::from(offset));
    let blocks = (0..BLOCKS).map(|block| block * (HELD_BELOW / BLOCKS));
    let exclude = blocks.filter_map(|first| format!("{}-{}", address(first), address(first + BLOCK - 1)).parse().ok());
    let mut allocator = allocator("2001:db8::/64", exclude.collect());
    for offset in (0..HELD_BELOW).step_by(3) {
        allocator.adopt(address(offset).into(), "default/earlier", "bench");
    }
    allocator
}

fn allocator(range: &str, exclude: Vec<AddressRange>) -> Allocator {
    let addresses = range.parse().into_iter().collect();
    let config =
        PoolConfig { name: "bench".to_owned(), addresses, exclude, auto_assign: true, ..PoolConfig::default() };
    let mut allocator = Allocator::default();
    allocator.handle_pools(vec![Pool::new(config)]);
    allocator
}

fn shown(time: Duration, size: u32) -> String {
    let each = time.as_secs_f64() * 1e9 / f64::from(size);
    format!("{:>9.1} ms {each:>7.0} ns", time.as_secs_f64() * 1e3)
}
