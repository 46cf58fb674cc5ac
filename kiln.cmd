@echo off
rem Makes .venv once, then hands its arguments to Invoke (tasks.py holds the commands).
rem Stages run in containers: Docker Desktop must be running.
setlocal
set "here=%~dp0"
set "python=%here%.venv\Scripts\python.exe"
if exist "%here%.venv\.kiln" (
    fc /b "%here%requirements.txt" "%here%.venv\.kiln" >nul 2>&1 && goto run
)
set "found="
for %%v in (3.13 3.12 3.11 3.10) do if not defined found (
    py -%%v -c "import venv" >nul 2>&1 && set "found=py -%%v"
)
if not defined found (
    python -c "import sys; sys.exit(sys.version_info < (3, 10))" >nul 2>&1 && set "found=python"
)
if not defined found (
    echo error: no Python 3.10 or newer was found 1>&2
    echo do:    install one from the Microsoft Store or python.org, then run this again 1>&2
    exit /b 1
)
echo kiln: setting up .venv ^(once^) 1>&2
if exist "%here%.venv" rmdir /s /q "%here%.venv"
%found% -m venv "%here%.venv" || exit /b 1
"%python%" -m pip install --quiet --disable-pip-version-check --require-hashes --requirement "%here%requirements.txt"
if errorlevel 1 (
    rmdir /s /q "%here%.venv"
    echo error: the Python packages could not be installed 1>&2
    echo do:    check the network and pip's settings, then run this again 1>&2
    exit /b 1
)
for /f "delims=" %%p in ('"%python%" -c "import sysconfig; print(sysconfig.get_path('purelib'))"') do (
    >"%%p\edgekiln.pth" echo %here%src
)
copy /y "%here%requirements.txt" "%here%.venv\.kiln" >nul
:run
"%python%" -m edgekiln %*
exit /b %errorlevel%
