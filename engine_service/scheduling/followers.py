"""The choices of a request that wait until one of them, the leader, has computed the prompt for all."""

from __future__ import annotations

from engine_service.scheduling.sequence import Sequence


class Followers:
    """Who leads and who follows, for requests of several choices whose prompt is yet to be computed."""

    def __init__(self) -> None:
        self._groups: dict[int, list[Sequence]] = {}  # by request id; the leader first

    def __len__(self) -> int:
        return sum(len(group) - 1 for group in self._groups.values())

    def join(self, sequence: Sequence) -> bool:
        """Takes in a choice that is to start. True where it need not wait: it is the only one, or it leads from now."""
        request = sequence.request
        if request.num_choices == 1:
            return True
        group = self._groups.setdefault(request.id, [])
        group.append(sequence)
        return group[0] is sequence

    def release(self, leader: Sequence) -> list[Sequence]:
        """The choices that waited for `leader`, which do so no longer; none where it leads nobody."""
        group = self._groups.get(leader.request.id)
        if group is None or group[0] is not leader:
            return []
        del self._groups[leader.request.id]
        return group[1:]

    def discard(self, sequence: Sequence) -> bool:
        """Takes out a choice that waits for its leader. False where it does not."""
        group = self._groups.get(sequence.request.id, [])
        if sequence not in group[1:]:
            return False
        group.remove(sequence)
        return True
