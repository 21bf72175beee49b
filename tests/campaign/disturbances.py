"""Carries out the plan's faults on the service, and records their times."""

import signal
import socket
import statistics
import time

# Longest wait for the planned moment.
PATIENCE = 60
# Time for the service to start again without faults.
UP_SECONDS = 60
# Number of failed starts after which the campaign gives up.
UP_TRIES = 3
# File descriptors of a process with few: enough to start, but not for much more.
FEW_DESCRIPTORS = 64
# Connections that use up the remaining ones.
IDLE_CONNECTIONS = 48


class Entry:
    """One fault, with its start and end."""

    def __init__(self, what, began, ended=None, detail=""):
        self.what, self.began, self.ended, self.detail = what, began, ended, detail

    def overlaps(self, began, ended):
        return self.began <= ended and (self.ended is None or self.ended >= began)


class Disturber:
    def __init__(self, lane):
        self.lane, self.service = lane, lane.service
        self.history, self.violations = [], []
        self.kills, self.kills_coming_up, self.failed_starts = 0, 0, 0
        self.stop = lane.stop

    # --- writing down ---------------------------------------------------------------

    def begin(self, what, detail=""):
        entry = Entry(what, time.monotonic(), None, detail)
        self.history.append(entry)
        return entry

    def end(self, entry):
        entry.ended = time.monotonic()

    def pause(self, seconds):
        self.stop.wait(max(0.0, seconds))

    # --- the moments ----------------------------------------------------------------

    def coming_up(self):
        """Guests whose hypervisor runs and whose job has not started, according to the observer."""
        return self.lane.coming_up()

    def time_to_start(self):
        """Observed seconds from a hypervisor's start to its job's start."""
        known = self.lane.start_times()
        return statistics.median(known[-20:]) if known else 5.0

    def await_guest(self, step):
        """Waits until a guest has been coming up for the planned part of the usual time. A guest whose job starts earlier than
        usual is too late for that, and the next one is awaited."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not self.stop.is_set():
            if self.coming_up():
                self.pause(step.fraction * self.time_to_start())
                if self.coming_up():
                    return
            with self.lane.watch.changed:
                self.lane.watch.changed.wait(0.5)

    def await_moment(self, step):
        if step.moment == "coming_up":
            self.await_guest(step)
        elif step.moment == "any":
            self.pause(step.fraction * 2 * self.time_to_start())
        else:
            self.pause(step.fraction * 0.5)

    # --- the steps ------------------------------------------------------------------

    def run(self, steps):
        for step in steps:
            if self.stop.is_set():
                return
            if step.moment != "starting" and not self.service.await_answer(5):
                self.bring_up()
            self.await_moment(step)
            getattr(self, "with_" + (step.extra or "nothing"))(step)
            self.lane.progress(step)

    def kill_and_return(self, step, descriptors=None, while_away=lambda: None):
        """Kills the service now, and starts it again after the planned time."""
        self.kill()
        entry = self.begin("away", f"{step.away:.1f} s")
        while_away()
        self.pause(step.away)
        self.service.start(descriptors)
        self.end(entry)

    def kill(self):
        self.kills += 1
        coming_up = self.coming_up()
        self.kills_coming_up += bool(coming_up)
        self.end(self.begin("kill", ", ".join(sorted(coming_up)) or "no guest was coming up"))
        self.service.kill()

    def bring_up(self):
        """Without faults, the service has to start."""
        for _ in range(UP_TRIES):
            until = time.monotonic() + UP_SECONDS
            while time.monotonic() < until and not self.stop.is_set():
                if self.service.await_answer(10):
                    return
                if not self.service.alive():
                    self.failed_starts += 1
                    self.pause(0.5)
                    self.service.start()
            if self.stop.is_set():
                return
            self.violations.append({"what": "the service does not come up", "at": time.monotonic(),
                                    "detail": f"no answer within {UP_SECONDS} s and nothing was done to it"})
            self.service.kill()
        raise RuntimeError("the service does not come up")

    def with_nothing(self, step):
        self.kill_and_return(step)

    def with_stall(self, step):
        entry = self.begin("stall", f"{step.extent:.1f} s")
        self.service.signal(signal.SIGSTOP)
        self.pause(step.extent)
        if step.within:
            return self.kill_and_return(step, while_away=lambda: self.end(entry))
        self.service.signal(signal.SIGCONT)
        self.end(entry)
        self.await_moment(step)
        self.kill_and_return(step)

    def with_clock(self, step):
        if self.lane.clock is None:
            return self.with_nothing(step)
        # At most an hour from the machine's clock.
        by = step.extent if abs(self.lane.clock.offset + step.extent) <= 3600 else -step.extent
        self.end(self.begin("clock", f"{by:+} s"))
        if step.within:
            return self.kill_and_return(step, while_away=lambda: self.lane.clock.step(by))
        self.lane.clock.step(by)
        self.await_moment(step)
        self.kill_and_return(step)

    def with_disk(self, step):
        filler = self.lane.filler
        if filler is None:
            return self.with_nothing(step)
        entry = self.begin("disk", f"full for {step.extent:.1f} s")
        try:
            filler.fill()
            if step.within:
                # It dies and starts on a full disk.
                self.pause(step.extent / 2)
                self.kill_and_return(step)
                self.run_supervised(step.extent / 2)
            else:
                self.pause(step.extent)
        finally:
            filler.free()
            self.end(entry)
        if not step.within:
            # It has to continue by itself, which takes a moment to detect.
            self.await_moment(step)
            self.kill_and_return(step)
        self.bring_up()

    def with_descriptors(self, step):
        self.kill_and_return(step, FEW_DESCRIPTORS)
        entry = self.begin("descriptors", f"at most {FEW_DESCRIPTORS} for {step.extent:.1f} s")
        held = []
        until = time.monotonic() + step.extent
        while time.monotonic() < until and not self.stop.is_set():
            if not self.service.alive():
                self.failed_starts += 1
                self.service.start(FEW_DESCRIPTORS)
            if step.within and len(held) < IDLE_CONNECTIONS:
                self.hold_connection(held)
            else:
                self.pause(0.5)
        self.service.kill()
        for connection in held:
            connection.close()
        self.service.start()
        self.end(entry)
        self.bring_up()

    def hold_connection(self, held):
        try:
            held.append(socket.create_connection(("127.0.0.1", self.service.port), timeout=1))
        except OSError:
            self.pause(0.2)

    def run_supervised(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stop.is_set():
            if not self.service.alive():
                self.failed_starts += 1
                self.service.start()
            self.pause(0.5)
