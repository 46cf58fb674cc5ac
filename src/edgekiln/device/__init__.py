"""A bundle on a phone: pushed, run and measured through the user's own adb.

adb       the adb client: which phone, commands, copies
payload   what of a bundle belongs on the phone
push      only what changed, with digests before and after
programs  the runtime a bundle needs beside itself, and where it comes from
run       a prompt answered on the phone
install   an app onto the phone, with the weights it wants
profile   the same with figures, beside those that were published
"""
