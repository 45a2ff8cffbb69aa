"""Curtailment windows, membership policies, segment planning and the what-if simulator."""
