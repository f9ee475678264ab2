"""Studies: many stages in one command, and one table of what came out.

A sweep compares sampler settings and models; an ablation trains the paper's tokenizers. In go configs of the single
stages; out come a Markdown table, a plot and the folders of the stages. Only jobs call `run`. `apart` runs stages in
processes of their own.
"""
