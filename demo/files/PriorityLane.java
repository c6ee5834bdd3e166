package org.example.yard;

import java.util.Comparator;
import java.util.Optional;
import java.util.PriorityQueue;

/** A waiting line: the highest priority first, equals in order of arrival. */
public final class PriorityLane<T> {
    private record Entry<T>(T task, int priority, long arrival) {}

    private final PriorityQueue<Entry<T>> entries = new PriorityQueue<>(
            Comparator.<Entry<T>>comparingInt(Entry::priority).reversed().thenComparingLong(Entry::arrival));
    private long arrivals = 0;

    public synchronized void add(T task, int priority) {
        if (priority < 0 || priority > 9) {
            throw new IllegalArgumentException("priority must be between 0 and 9");
        }
        entries.add(new Entry<>(task, priority, arrivals++));
    }

    public synchronized Optional<T> next() {
        return Optional.ofNullable(entries.poll()).map(Entry::task);
    }

    public synchronized int size() {
        return entries.size();
    }
}
